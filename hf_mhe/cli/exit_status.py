"""The exit statuses of `hf-mhe`; 0 is done."""

EXIT_CHECK_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as the shell has it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE, as the shell has it
