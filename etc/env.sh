# Puts condor_submit and its kin, and pilotq, first on PATH: `source etc/env.sh` in bash or zsh, `. etc/env.sh` in sh.

_pilotq_self=
if [ -n "${BASH_VERSION:-}" ]; then
    eval '_pilotq_self=${BASH_SOURCE[0]}'
elif [ -n "${ZSH_VERSION:-}" ]; then
    eval '_pilotq_self=${(%):-%x}'
else
    # A plain shell does not say which file it reads, but has it open.
    for _pilotq_fd in /proc/$$/fd/*; do
        _pilotq_link=$(readlink "$_pilotq_fd" 2>/dev/null) || continue
        case $_pilotq_link in
            */etc/env.sh) _pilotq_self=$_pilotq_link ;;
        esac
    done
fi
case $_pilotq_self in
    */*) _pilotq_root=$(CDPATH= cd -- "${_pilotq_self%/*}/.." && pwd -P) ;;
    ?*) _pilotq_root=$(CDPATH= cd -- .. && pwd -P) ;;
    *) _pilotq_root= ;;
esac

if [ -x "$_pilotq_root/fakecondor/condor" ]; then
    case $PATH in
        "$_pilotq_root/fakecondor:$_pilotq_root/bin:"*) ;;
        *) PATH=$_pilotq_root/fakecondor:$_pilotq_root/bin:$PATH ;;
    esac
    export PATH
    # Without PILOTQ_HOME everybody looks into ~/.pilotq.
    if [ -n "${PILOTQ_HOME:-}" ]; then export PILOTQ_HOME; fi
else
    echo 'env.sh: this shell does not say where it reads from; use `eval "$(.../bin/pilotq env)"` instead' >&2
fi
unset _pilotq_self _pilotq_root _pilotq_fd _pilotq_link
