"""The keywords of submit files as data: which attribute each becomes, and what pilotq does not do yet.

Source: HTCondor manual, condor_submit, submit description file commands.
"""

from __future__ import annotations

from enum import Enum, auto


class Kind(Enum):
    """How a value is written into the job ad."""

    STRING = auto()
    EXPRESSION = auto()
    INTEGER = auto()
    BOOLEAN = auto()
    #: KiB, with units.
    KIBIBYTES = auto()
    #: A comma list, put in order.
    NAMES = auto()


def _words(text: str) -> list[str]:
    return text.split()


#: Keyword -> attribute, for those that are an attribute and nothing else. The attribute's name is accepted as well.
_PLAIN: dict[Kind, dict[str, str]] = {
    Kind.STRING: {
        "append_files": "AppendFiles",
        "batch_id": "JobBatchId",
        "batch_project": "BatchProject",
        "batch_queue": "BatchQueue",
        "description": "JobDescription",
        "email_attributes": "EmailAttributes",
        "job_ad_information_attrs": "JobAdInformationAttrs",
        "job_machine_attrs": "JobMachineAttrs",
        "notify_user": "NotifyUser",
        "scitokens_file": "ScitokensFile",
        "starter_debug": "JobStarterDebug",
        "submit_event_notes": "SubmitEventNotes",
        "submit_event_user_notes": "SubmitEventUserNotes",
        "ulog_execute_attrs": "UserLogExecuteEventAttrs",
        "x509userproxy": "x509userproxy",
    },
    Kind.NAMES: {"concurrency_limits": "ConcurrencyLimits"},
    Kind.EXPRESSION: {
        "allowed_execute_duration": "AllowedExecuteDuration",
        "allowed_job_duration": "AllowedJobDuration",
        "concurrency_limits_expr": "ConcurrencyLimits",
        "job_max_vacate_time": "JobMaxVacateTime",
        "keep_claim_idle": "KeepClaimIdle",
        "max_job_retirement_time": "MaxJobRetirementTime",
        "max_transfer_input_mb": "MaxTransferInputMB",
        "max_transfer_output_mb": "MaxTransferOutputMB",
        "next_job_start_delay": "NextJobStartDelay",
        "periodic_vacate": "PeriodicVacate",
    },
    Kind.INTEGER: {
        "core_size": "CoreSize",
        "coresize": "CoreSize",
        "dagman_job_id": "DAGManJobId",
        "hold_kill_sig_timeout": "HoldKillSigTimeout",
        "job_machine_attrs_history_length": "JobMachineAttrsHistoryLength",
        "kill_sig_timeout": "KillSigTimeout",
        "match_list_length": "LastMatchListLength",
        "max_idle": "JobMaterializeMaxIdle",
        "max_materialize": "JobMaterializeLimit",
    },
    Kind.BOOLEAN: {
        "erase_output_and_error_on_restart": "EraseOutputAndErrorOnRestart",
        "log_xml": "UserLogUseXML",
        "run_as_owner": "RunAsOwner",
        "want_graceful_removal": "WantGracefulRemoval",
    },
    Kind.KIBIBYTES: {"disk_usage": "DiskUsage", "image_size": "ImageSize"},
}
#: Keyword or attribute in lower case -> attribute and kind.
PLAIN: dict[str, tuple[str, Kind]] = {
    name.lower(): (attribute, kind)
    for kind, table in _PLAIN.items()
    for keyword, attribute in table.items()
    for name in (keyword, attribute)
}

#: What would change how or where a job runs, or was asked for to keep a secret: refused when given.
REFUSED = frozenset(
    _words(
        "checkpoint_exit_code checkpoint_destination transfer_checkpoint_files container_image docker_image "
        "cron_minute cron_hour cron_day_of_month cron_month cron_day_of_week deferral_time deferral_window "
        "deferral_prep_time encrypt_execute_directory encrypt_input_files encrypt_output_files "
        "interactive_executable jar_files java_vm_args manifest noop_job "
        "noop_job_exit_code noop_job_exit_signal output_destination output_directory public_input_files "
        "remote_initialdir shell skip_if_dataflow suspend_job_at_exec tool_daemon_cmd transfer_plugins "
        "use_oauth_services useoauthservices vm_type want_io_proxy common_input_files primary_unix_group"
    )
)
#: Values of these that ask for nothing.
NOTHING = frozenset({"", "0", "1", "false", "no", "f", "undefined"})

#: What is kept in the job's ad but not acted on: said on stderr. (Of requirements and rank only what they come to.)
NOT_YET = {
    "append_files": "output is written anew at each start",
    "concurrency_limits": "limits are not kept",
    "concurrency_limits_expr": "limits are not kept",
    "gpus_maximum_capability": "it is not used for matching",
    "gpus_minimum_capability": "it is not used for matching",
    "gpus_minimum_memory": "it is not used for matching",
    "gpus_minimum_runtime": "it is not used for matching",
    "max_idle": "all jobs are queued at once",
    "max_materialize": "all jobs are queued at once",
    "next_job_start_delay": "jobs start without delay",
    "periodic_vacate": "it is not evaluated",
    "require_gpus": "it is not used for matching",
    "run_as_owner": "jobs run as the account of their worker",
    "scitokens_file": "the token is not sent with the job",
    "use_scitoken": "the token is not sent with the job",
    "use_scitokens": "the token is not sent with the job",
    "use_x509userproxy": "the proxy is not sent with the job",
    "x509userproxy": "the proxy is not sent with the job",
}

#: All others that are no typing errors: read somewhere in `pilotq.condor`, or without a meaning here.
_OTHERS = _words(
    "accounting_group accounting_group_user acctgroup acctgroupuser "
    "allow_arguments_v1 allow_environment_v1 args arguments arguments2 batch_extra_submit_args batch_name "
    "batch_runtime buffer_block_size buffer_files buffer_size cmd compress_files copy_to_spool cpus "
    "delegate_job_gsi_credentials_lifetime dont_encrypt_input_files dont_encrypt_output_files env environment "
    "environment2 error executable exit_requirements fetch_files file_remaps get_env getenv grid_resource hold "
    "hold_kill_sig initial_dir initialdir input iwd job_batch_name job_iwd job_lease_duration jobbatchname "
    "jobleaseduration jobprio jobset jobuniverse kill_sig leave_in_queue leavejobinqueue load_profile local_files log "
    "machine_count nice_user niceuser node_count nodecount "
    "max_retries memory_usage notification on_evict_checks on_exit_hold on_exit_remove onexithold onexitremove "
    "output on_exit_hold_reason on_exit_hold_subcode onexitholdreason "
    "onexitholdsubcode periodic_hold periodic_hold_reason periodic_hold_subcode periodicholdreason "
    "periodicholdsubcode periodic_release periodic_remove periodichold periodicrelease periodicremove "
    "preserve_relative_paths preferences prio priority rank remove_kill_sig rendezvousdir requestcpus requestdisk "
    "requestgpus requestmemory requirements retry_until send_credential should_transfer_files shouldtransferfiles "
    "skip_filechecks stack_size starter_log stderr stdin stdout stream_error stream_input stream_output "
    "success_exit_code transfer_error transfer_executable transfer_input transfer_input_files transfer_output "
    "transfer_output_files transfer_output_remaps transferinput transferinputfiles transferoutput "
    "transferoutputfiles transferoutputremaps universe use_scitoken use_scitokens use_x509userproxy userlog "
    "want_ads want_job_networking want_remote_updates when_to_transfer_output whentotransferoutput"
)
#: Every keyword in lower case.
KNOWN = frozenset([*PLAIN, *REFUSED, *NOT_YET, *_OTHERS])
_FAMILIES = ("my.", "request_", "require_", "arc_", "aws_", "azure_", "cloud_label_", "ec2_", "gce_", "vm_", "xen_")


def is_known(key: str) -> bool:
    """Whether a key, in lower case, means something to condor_submit by itself."""
    return key in KNOWN or key.startswith(_FAMILIES)
