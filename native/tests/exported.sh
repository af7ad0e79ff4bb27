#!/bin/sh
# What a library shows to those who link to it: exported.sh NM LIBRARY HEADER. Functions of the header, all of them, and
# nothing else: another copy of a C++ template would be taken for the program's own.
set -eu
shown=$("$1" -D --defined-only --format=posix "$2" | cut -d' ' -f1 | sort)
declared=$(sed -n 's/^KVMERGE_API .*[ *]\(kvmerge_[a-z_]*\)(.*/\1/p' "$3" | sort)
if [ "$shown" != "$declared" ] || [ -z "$shown" ]; then
    echo "$2 shows:"
    echo "$shown"
    echo "$3 declares:"
    echo "$declared"
    exit 1
fi
