
# The ids that the daemon has at the moment.
function PROGRAM_ask
    set -l value 0
    set -l options
    for word in (commandline -opc)[2..-1]
        if test $value = 1
            set -a options $word
            set value 0
        else
            switch $word
                case -s -i -n --socket --instance --name
                    set -a options $word
                    set value 1
                case '--socket=*' '--instance=*' '--name=*'
                    set -a options $word
            end
        end
    end
    command PROGRAM --timeout 1 --color never $options $argv 2>/dev/null
end

function PROGRAM_ids
    PROGRAM_ask $argv | awk '$1 == "ID" { on = 1; next } !NF { on = 0 } on && $1 ~ /^[0-9]+$/ { print $1 }'
end

function PROGRAM_methods
    PROGRAM_ask status | sed -n 's/,//g; s/^METHODS *quarantined: \(.*\); lifted.*/\1/p' | string split ' '
end

# The methods that the daemon serves. Each daemon has ping.
function PROGRAM_served
    set -l names (PROGRAM_ask call methods | grep -o '"name":"[^"]*"' | cut -d '"' -f 4)
    test (count $names) -gt 0; or set names ping
    printf '%s\n' $names
end

complete -c FILE -n "USING recycle" -k -f -a "all (PROGRAM_ids status)"
complete -c FILE -n "USING hold" -k -f -a "(PROGRAM_ids status)"
complete -c FILE -n "USING release" -k -f -a "(PROGRAM_ids status; PROGRAM_methods)"
complete -c FILE -n "USING kick" -k -f -a "(PROGRAM_ids clients)"
complete -c FILE -n "USING clients" -l worker -x -k -a "(PROGRAM_ids status)"
complete -c FILE -n "USING call" -k -f -a "(PROGRAM_served)"
complete -c FILE -n "USING bench" -k -f -a "(PROGRAM_served)"
