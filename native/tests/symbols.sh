#!/bin/sh
# Whether an instruction set's object keeps to itself: symbols.sh NM OBJDUMP ISA OBJECT... Of what it defines, others
# may see its table and nothing else: of a weak or global symbol that a second object has too, the linker keeps one copy
# for both, whose instructions the CPU may lack. Nor may it hold code that runs when the library is loaded, before
# anybody has asked what the CPU can do.
set -eu
nm=$1 objdump=$2 isa=$3
shift 3
object=$*
length=${#isa}
table="_ZN7kvmerge${length}${isa}5tableEv"
symbols=$("$nm" --defined-only --extern-only --format=posix "$@" | cut -d' ' -f1,2)
groups=$("$objdump" --section-headers --wide "$@" | awk '$2 ~ /^\.group/ || /LINK_ONCE/ { print $2 }')
initialisers=
if ! "$nm" "$@" | grep -q '__asan_\|__tsan_'; then # the sanitizers' own announce globals, with plain instructions
    initialisers=$("$objdump" --section-headers --wide "$@" |
        awk '$2 ~ /^\.(init_array|ctors|preinit_array)/ { print $2 }')
fi
if [ "$symbols" != "$table T" ] || [ -n "$groups$initialisers" ]; then
    echo "$object defines, where others see it:"
    echo "$symbols" | grep -v "^$table T\$" || true
    echo "sections that are shared: $groups"
    echo "initialisers: $initialisers"
    exit 1
fi
echo "$object: only $table is seen"
