"""`sqlmq run`: call an application's handler with messages.

command          the command and its options
handler_loading  imports the handler `MODULE:NAME`
log_format       the log format of a run
supervisor       starts, watches and stops several processes
supervised       one of these processes
"""
