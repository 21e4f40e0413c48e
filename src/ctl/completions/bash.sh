
# Words come before options, with the ids and methods that the daemon has at the moment.
PROGRAM_ask() {
    local word value= options=()
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        if [[ $word == = ]]; then
            continue
        elif [[ -n $value ]]; then
            options+=("$word")
            value=
        else
            case $word in
                -[sin] | --socket | --instance | --name) options+=("$word") value=1 ;;
            esac
        fi
    done
    command PROGRAM --timeout 1 --color never "${options[@]}" "$@" 2>/dev/null
}

PROGRAM_ids() {
    PROGRAM_ask "$1" | awk '$1 == "ID" { on = 1; next } !NF { on = 0 } on && $1 ~ /^[0-9]+$/ { print $1 }'
}

# The methods that the daemon serves. Each daemon has ping.
PROGRAM_served() {
    local names
    names=$(PROGRAM_ask call methods | grep -o '"name":"[^"]*"' | cut -d '"' -f 4)
    echo "${names:-ping}"
}

PROGRAM_words() {
    GENERATED "$@"
    local word words=() known=
    case $3 in
        --worker | hold) known=$(PROGRAM_ids status) ;;
        recycle) known="all $(PROGRAM_ids status)" ;;
        release)
            known=$(PROGRAM_ids status)
            known+=" $(PROGRAM_ask status | sed -n 's/,//g; s/^METHODS *quarantined: \(.*\); lifted.*/\1/p')"
            ;;
        kick) known=$(PROGRAM_ids clients) ;;
        call | bench) known=$(PROGRAM_served) ;;
    esac
    if [[ -n ${known// /} && $2 != -* ]]; then
        COMPREPLY=($(compgen -W "$known" -- "$2"))
        return
    fi
    [[ $2 == -* ]] && return
    for word in "${COMPREPLY[@]}"; do
        [[ $word == -* ]] || words+=("$word")
    done
    if ((${#words[@]})); then
        COMPREPLY=("${words[@]}")
    fi
}

complete -F PROGRAM_words -o bashdefault -o default FILE
