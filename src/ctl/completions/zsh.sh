# The ids and methods that the daemon has at the moment.
PROGRAM_ask() {
    local word value= options=()
    for word in "${words[@]:1}"; do
        if [[ -n $value ]]; then
            options+=("$word")
            value=
        else
            case $word in
                -[sin] | --socket | --instance | --name) options+=("$word") value=1 ;;
                --socket=* | --instance=* | --name=*) options+=("$word") ;;
            esac
        fi
    done
    command PROGRAM --timeout 1 --color never "${options[@]}" "$@" 2>/dev/null
}

PROGRAM_ids() {
    PROGRAM_ask "$1" | awk '$1 == "ID" { on = 1; next } !NF { on = 0 } on && $1 ~ /^[0-9]+$/ { print $1 }'
}

PROGRAM_workers() {
    compadd "$@" -- ${(f)"$(PROGRAM_ids status)"}
}

PROGRAM_recycle() {
    compadd "$@" -- all ${(f)"$(PROGRAM_ids status)"}
}

PROGRAM_release() {
    local methods="$(PROGRAM_ask status | sed -n 's/,//g; s/^METHODS *quarantined: \(.*\); lifted.*/\1/p')"
    compadd "$@" -- ${(f)"$(PROGRAM_ids status)"} ${=methods}
}

PROGRAM_clients() {
    compadd "$@" -- ${(f)"$(PROGRAM_ids clients)"}
}

# The methods that the daemon serves. Each daemon has ping.
PROGRAM_methods() {
    local names="$(PROGRAM_ask call methods | grep -o '"name":"[^"]*"' | cut -d '"' -f 4)"
    compadd "$@" -- ${=names:-ping}
}

