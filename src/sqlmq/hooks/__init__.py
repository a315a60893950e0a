"""Where tests and telemetry attach to the library.

clock       time, waits and random numbers: of the system, or of a test
failpoints  named places where a test can stop, fail or kill a program
log_events  the structured fields of log records
observer    the interface of telemetry: around sending, delivering and handling
"""
