# shellcheck shell=bash
# What all scripts do with --help and with wrong arguments. Source it, before any `cd`; do not run it.

# die MESSAGE: print an error that the user can fix, on one line, and exit with 2.
die() {
    printf 'error: %s: %s\n' "${0##*/}" "$*" >&2
    exit 2
}

# want_arguments FEWEST MOST [ARGUMENT...]: die with the script's usage unless so many arguments are given.
want_arguments() {
    local fewest=$1 most=$2 usage
    shift 2
    (($# < fewest || $# > most)) || return 0
    usage=$(sed -n '/^#.*bash [^ ]*\.sh/{s/.*\(bash [^ ]*\.sh\)/\1/;p;q;}' "$0")
    die "takes $fewest to $most arguments and got $#; usage: $usage"
}

# want_number NAME VALUE: die unless the setting NAME is a whole number from 1 on.
want_number() { [[ $2 =~ ^[1-9][0-9]{0,3}$ ]] || die "$1=$2: want a whole number from 1 on"; }

for word in "$@"; do
    if [[ $word == -h || $word == --help ]]; then
        sed -n -e 1d -e '/^#/!q' -e 's/^# \{0,1\}//p' "$0"
        exit 0
    fi
done
unset word
