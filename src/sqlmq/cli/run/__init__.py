"""`sqlmq run`: an application's handler, called with messages.

command          the command and its options
handler_loading  finds the handler that `module:name` names
log_format       how the run is logged
supervisor       starts, watches and stops several processes
supervised       one of these processes
"""
