#!/bin/sh
# Put before every payload with `alien_work_queue --job-wrapper`: gives it an environment of its own. What is called
# ALIEN_... stays, so does what points into the scratch directory; everything else is dropped. With ALIEN_USE_PARROT=1,
# on a node without the ALICE software on /cvmfs, the payload runs under parrot_run. It keeps the PID of this script.

if [ "${ALIEN_USE_PARROT:-}" = 1 ] && ! ls /cvmfs/alice.cern.ch >/dev/null 2>&1; then
    parrot=$(command -v parrot_run) && "$parrot" true >/dev/null 2>&1 && set -- "$parrot" "$@"
fi

# A value may hold anything, so only the names are read from `env`.
for name in $(env | sed -n 's/^\(ALIEN_[A-Za-z0-9_]*\|TMPDIR\|_CONDOR_[A-Z_]*\)=.*/\1/p'); do
    eval "value=\${$name-}"
    set -- "$name=$value" "$@"
done

exec env -i PATH=/bin:/usr/bin HOME="${HOME:-/}" USER="${USER:-$(id -un)}" LANG=C LC_ALL=C "$@"
