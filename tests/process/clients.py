"""Grid software as it uses HTCondor: submit texts, command lines, and how each reads what is printed.

Perl AliEn (CONDOR.pm, HTCONDOR.pm), JAliEn (HTCONDOR.java, its former and its present generation), ARGO's Balsam.
"""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from parts import Parts
from pools import SHIMS

BOTH, IDLE = '"JobStatus==1 || JobStatus==2"', '"JobStatus==1"'
TIMEOUT_S = 60


class Ce:
    """A computing element on the head, in a directory of its own; the condor commands are on the PATH of the pool."""

    def __init__(self, pool: Parts, folder: Path) -> None:
        self.pool = pool
        self.folder = folder
        self.logs = folder / "log" / "2024-05-01"
        self.logs.mkdir(parents=True)
        self.ran = folder / "ran"
        self.ran.mkdir()
        #: What they start waits for this file.
        self.gate = folder / "gate"
        self.environ = pool.environ
        self.user = pwd.getpwuid(os.getuid()).pw_name

    def feed(self, command: str, text: str) -> int:
        """Perl's `open "| command"`: the exit code of close."""
        process = subprocess.Popen(
            ["/bin/sh", "-c", command], env=self.environ, cwd=self.folder, stdin=subprocess.PIPE, text=True
        )
        process.communicate(text, timeout=TIMEOUT_S)
        return process.returncode

    def pipe_from(self, command: str) -> tuple[int, str]:
        """Perl's `open "command |"`: the exit code of close, and what was read."""
        argv = ["/bin/sh", "-c", command]
        done = subprocess.run(
            argv, env=self.environ, cwd=self.folder, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=False
        )
        return done.returncode, done.stdout

    def backticks(self, command: str) -> str:
        """Of a pipeline only the last exit code would be known, and nobody looks."""
        return self.pipe_from(command)[1]

    def system(self, command: str) -> int:
        return self.pipe_from(command)[0]

    def bash(self, command: str) -> tuple[int, str]:
        """JAliEn's way: standard input closed, standard error in standard output, read to its end."""
        process = subprocess.Popen(
            ["/bin/bash", "-c", command],
            env=self.environ,
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
        said = process.communicate(timeout=TIMEOUT_S)[0]
        return process.returncode, said

    def agent(self, path: str, name: str = "$ALIEN_JOBAGENT_ID") -> Path:
        """The script a CE submits: it leaves what it saw in `ran`, and waits for the gate."""
        script = self.folder / path
        script.write_text(
            "#!/bin/bash\nexport HOME=$(pwd)\necho started\n"
            f"to={self.ran}/{name}\n"
            "{ env; touch here && echo WRITABLE=1; stat -c MODE=%a .\n"
            'sed -n "/^GlobalJobId\\|^PeriodicRemove/p" "$_CONDOR_JOB_AD"; grep CondorVersion "$_CONDOR_MACHINE_AD"\n'
            '} > "$to.part"\nmv "$to.part" "$to"\n'
            f"for i in $(seq 600); do [ -e {self.gate} ] && break; sleep 0.1; done\n"
        )
        script.chmod(0o750)
        return script

    def seen(self, name: str) -> dict[str, str]:
        """What an agent left, by name of variable or attribute; nothing while it has not."""
        path = self.ran / name
        lines = path.read_text().splitlines() if path.exists() else []
        return {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}


# ---- Perl AliEn, CONDOR.pm ---------------------------------------------------------------------------------------


class PerlCondor(Ce):
    """The client alien-workqueue was made for."""

    def submit(self, script: Path, number: int, *arguments: str) -> int:
        """`arguments`: CE_SUBMITARG of a site."""
        base = f"{self.logs}/AliEn.JobAgent.77.{number}"
        more = "".join(f"{argument.replace('grid_resource=', 'grid_resource=gt2 ')}\n" for argument in arguments)
        return self.feed(
            "condor_submit",
            f"executable = {script}\narguments = \n{more}"
            f"output = {base}.out\nerror  = {base}.err\nlog    = {base}.log\n"
            "environment=CONDOR_ID=$(Cluster).$(Process);ALIEN_CM_AS_LDAP_PROXY=voalice.cern.ch:8084;"
            f"ALIEN_JOBAGENT_ID=77.{number};ALIEN_ALICE_CM_AS_LDAP_PROXY=voalice.cern.ch:8084\nqueue\n",
        )

    def count_command(self, constraint: str) -> str:
        return f'condor_q -format "%s\\n" OWNER -constraint {constraint} | wc -l'

    def number(self, constraint: str) -> int | None:
        """As it is today; None: the CE does not know and submits nothing."""
        return self._checked(self.count_command(constraint))

    def number_of_lines(self, constraint: str) -> int | None:
        """As it was from 2013 on."""
        return self._checked(f"condor_q -constraint {constraint} | wc -l")

    def number_of_grid_jobs(self, constraint: str) -> int | None:
        """As it was before."""
        return self._checked(
            f'condor_q -constraint {constraint} -format "%s " GridJobId -format "HoldReason=%s " HoldReasonCode '
            '-format "%s \\n" GridJobStatus | grep -v undef | wc -l'
        )

    def _checked(self, command: str) -> int | None:
        found = int(self.backticks(command).splitlines()[0])
        if found == 0 and self.system("condor_q"):
            return None
        return found

    def listed(self) -> list[str] | None:
        """Ids of the CE's own; None: an error."""
        command = f'condor_q -constraint {BOTH} -format "%d " ClusterId -format "%s \\n" Cmd'
        code, said = self.pipe_from(command)
        if code:
            return None
        lines = [
            line
            for line in said.splitlines()
            if re.search(r"alien|agent.startup", line, re.I) and not re.search(r"undefined|HoldReason", line)
        ]
        return [line.split(" ")[0] for line in lines if len(line.split()) < 6 or line.split()[5] != "X"]


# ---- Perl AliEn, HTCONDOR.pm -------------------------------------------------------------------------------------


class PerlHtcondor(Ce):
    """Both forms: a description on standard input, and later in a file."""

    submit_args = '-append "+TestClassAd=1"'

    def text(self, script: Path, number: str, *, router: bool = False, hold: str = "") -> str:
        base = f"{self.logs}/jobagent_{number}"
        where = "grid_resource = condor ce.example.org ce.example.org:9619\n"
        if router:
            where = "+WantJobRouter=True\n\tjob_lease_duration = 7200\n\tShouldTransferFiles = YES\n"
        return (
            f"cmd = {script}\noutput = {base}.out\nerror = {base}.err\nlog = {base}.log\n"
            f"universe = {'vanilla' if router else 'grid'}\n"
            '\t+TransferOutput = ""\n\t#for debugging: transfer all of it\n'
            f"{hold}\tperiodic_remove = (CurrentTime - QDate) > 7*24*3600\n\t{where}"
            "\t+WantExternalCloud = True\n\tuse_x509userproxy = true\n"
            "environment=\"ALIEN_CM_AS_LDAP_PROXY='h:8084' ALIEN_ALICE_CM_AS_LDAP_PROXY='h:8084' "
            f"ALIEN_JOBAGENT_ID='{number}'\"\nqueue 1"
        )

    def submit(self, text: str) -> int:
        return self.feed(f"condor_submit {self.submit_args}", text)

    def submit_file(self, text: str) -> int:
        """The file is used again for a while."""
        file = self.folder / "htcondor-submit.jdl"
        file.write_text(text + "\n")
        return self.system(f"condor_submit {self.submit_args} {file}")

    def from_schedd(self) -> tuple[int, int]:
        """Running and idle: the first number of each answer."""
        said = [self.backticks(f"condor_status -schedd -af {name}") for name in ("totalRunningJobs", "totalIdleJobs")]
        running, idle = [re.search(r"\d+", text) for text in said]
        assert running is not None and idle is not None, said
        return int(running[0]), int(idle[0])

    def sum_from_schedd(self) -> int:
        said = self.backticks("condor_status -schedd -af totalRunningJobs totalIdleJobs")
        return sum(int(number) for number in said.split())

    def from_totals(self) -> tuple[int, int]:
        """Running, and what counts as queued."""
        said = self.backticks(f"condor_q {self.user} -totals | tail -n 1")
        match = re.search(r"(\d+) idle,\s+(\d+) running,\s+(\d+) held,\s+(\d+) suspended", said)
        assert match is not None, said
        return int(match[2]), int(match[1]) + int(match[3]) + int(match[4])


# ---- JAliEn ------------------------------------------------------------------------------------------------------

GRID_HOLD = "JobStatus == 1 && GridJobStatus =?= undefined && CurrentTime - EnteredCurrentStatus > 1800 || "
LONG_HOLD = "JobStatus <= 2 && CurrentTime - EnteredCurrentStatus > 172800"
#: custom-classad.jdl as it comes out: a line that was continued is followed by an empty one.
CUSTOM = '#\n# custom attributes start\n#\n\n+MyTest = 1 + \\\n\n  2 + \\\n\n  3\n+Site = "a"\n\n#\n# end\n#\n\n'


@dataclass
class Balance:
    """What one look at the queue tells a CE."""

    idle: int
    running: int
    #: Jobs by the last word of their line.
    by_ce: Counter[str]


class Jalien(Ce):
    """`former`: the generation that ignores exit codes."""

    submit_args = '-append "+TestClassAd=1"'
    former = False
    local_pool = False
    pattern = r"\s*([12]+)\s.*?(\S+)"

    def text(
        self,
        script: Path,
        number: str,
        ce: str = "",
        *,
        router: bool = False,
        token: bool = False,
        sandbox: bool = False,
    ) -> str:
        """`sandbox`: there is a file ~/enable-sandbox."""
        base = f"{self.logs}/jobagent_{number}"
        streams = f"output = {base}.out\nerror = {base}.err\n" if sandbox else ""
        local = router or self.local_pool
        where = f"universe = grid\ngrid_resource = condor {ce.partition(':')[0]} {ce}\n"
        if local:
            where = "universe = vanilla\n+WantJobRouter = True\njob_lease_duration = 7200\nShouldTransferFiles = YES\n"
        proxy = "use_x509userproxy = true\n"
        if token:
            proxy = f"use_scitokens = true\nscitokens_file = {self.folder}/wlcg.dat\n"
        return (
            f'cmd = {script}\n{streams}log = {base}.log\n+TransferOutput = ""\n'
            f"periodic_hold = {'' if self.local_pool else GRID_HOLD}{LONG_HOLD}\n"
            f"periodic_remove = CurrentTime - QDate > 259200\n{where}{proxy}"
            f"environment = \"ALIEN_CM_AS_LDAP_PROXY='alice-ldap.cern.ch:8389'\"\n{CUSTOM}queue 1\n\n"
        )

    def submit(self, text: str) -> tuple[int, str]:
        """Every submission overwrites the file of the one before."""
        file = self.logs / "htc-submit.17000.jdl"
        file.write_text(text)
        return self.bash(f"condor_submit {self.submit_args} {file}")

    @property
    def count_command(self) -> str:
        if self.local_pool:
            return "condor_q -const 'JobStatus < 3' -af JobStatus -format local_pool GridResource"
        return "condor_q -const 'JobStatus < 3' -af JobStatus GridResource"

    def count(self) -> Balance | None:
        """None: no submission in this round."""
        code, said = self.bash(self.count_command)
        if code and not self.former:
            return None
        rows = [match for line in said.splitlines() if (match := re.fullmatch(self.pattern, line.strip()))]
        states = Counter(row[1] for row in rows)
        return Balance(states["1"], states["2"], Counter(row[2] for row in rows))


class FormerJalien(Jalien):
    former = True
    pattern = r"\s*([12]).*\s(\S+)"


class LocalJalien(Jalien):
    submit_args = ""
    local_pool = True


# ---- ARGO's Balsam -----------------------------------------------------------------------------------------------


class CommandFailedError(Exception):
    """Non-zero exit."""


class Balsam(Ce):
    """Commands without a shell, from settings: they are absolute; standard error in standard output."""

    def run(self, command: str) -> str:
        argv = command.split()
        argv[0] = str(SHIMS / argv[0])
        done = subprocess.run(
            argv,
            env=self.environ,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise CommandFailedError(done.stdout)
        return done.stdout

    def script(self, name: str, text: str) -> Path:
        path = self.folder / "scripts" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(0o755)
        return path

    def submit(self, executable: Path, arguments: str, work: Path) -> int:
        """Pack the work directory, write the description, submit; both readings of the answer must agree."""
        subprocess.run(["tar", "zcf", "condor_job_input.tgz", "-C", work, "."], cwd=self.folder, check=True)
        (self.folder / "condor_job_input.tgz").rename(work / "condor_job_input.tgz")
        untar = self.script("condor_untar_input.sh", 'tar zxf "$1" && rm "$1"\n')
        pack = self.script("condor_tar_output.sh", 'tar zcf "$1" *\n')
        keys = {
            "Universe": "vanilla",
            "Arguments": f" {arguments}",
            "Priority": "5",
            "Initialdir": str(work),
            "Output": "condor_stdout.txt.$(Cluster).$(Process)",
            "Error": "condor_stderr.txt.$(Cluster).$(Process)",
            "Log": "condor_log.txt.$(Cluster).$(Process)",
            "should_transfer_files": "YES",
            "when_to_transfer_output": "ON_EXIT_OR_EVICT",
            "Executable": str(executable),
            "+PreCmd": f'"{untar.name}"',
            "+PreArguments": '"condor_job_input.tgz"',
            "+PostCmd": f'"{pack.name}"',
            "+PostArguments": '"condor_job_output.tgz"',
            "transfer_input_files": f"{untar},{pack},condor_job_input.tgz",
            "transfer_output_files": "condor_job_output.tgz",
            "stream_output": "true",
            "stream_error": "true",
        }
        text = "".join(f"{key:<30} = {value}\n" for key, value in keys.items())
        (self.folder / "job_submit.conf").write_text(text + "Queue\n")
        said = self.run("condor_submit job_submit.conf")
        first = int(said[said.index("cluster") + len("cluster") :].split()[0].replace(".", ""))
        (line,) = [line for line in said.splitlines() if line.find("job(s) submitted to cluster") > 0]
        assert int(line.split()[-1][:-1]) == first
        return first

    def rows(self, cluster: int) -> list[list[str]]:
        """Words of the rows of `condor_q <cluster>`: ID OWNER DATE TIME RUN ST PRI SIZE CMD."""
        found: list[list[str]] = []
        inside = False
        for line in self.run(f"condor_q {cluster}").splitlines():
            if all(word in line for word in ("ID", "OWNER", "CMD")):
                inside = True
            elif all(word in line for word in ("completed", "removed", "idle")):
                break
            elif inside and line.strip():
                assert len(line.split()) >= 9, line
                found.append(line.split())
        else:
            raise AssertionError("no last line")
        return found

    def ended_rows(self, cluster: int) -> list[list[str]]:
        """Words of the rows of `condor_history <cluster>`; the first line is passed over."""
        return [line.split() for line in self.run(f"condor_history {cluster}").splitlines()[1:]]

    def state(self, cluster: int) -> str:
        """Raises: KeyError where Balsam does not know the job any more."""
        letters = {row[5] for row in self.rows(cluster)}
        if "H" in letters:
            return "JOB_HELD"
        if letters:
            return "JOB_RUNNING" if "R" in letters else "JOB_QUEUED"
        ended = self.ended_rows(cluster)
        if not ended:
            raise KeyError(cluster)
        return "JOB_FAILED" if "X" in {row[5] for row in ended} else "JOB_FINISHED"

    def hold_reason(self, cluster: int) -> str:
        said = self.run(f"condor_q -analyze{cluster}")
        return said[said.index("Hold reason:") + len("Hold reason:") :].strip().splitlines()[0]
