"""Where the library meets its surroundings: the process, the log, tests and telemetry.

clock         time, waits and random numbers: of the system, or of a test
task_threads  threads for tasks; idle ones end by themselves
failpoints    named places where a test can stop, fail or kill a program
error_text    names and texts of exceptions that may have none
log_events    the structured fields of log records
log_hold      keeps log records back while a thread holds what others wait for
observer      the interface of telemetry: around sending, delivering and handling
"""
