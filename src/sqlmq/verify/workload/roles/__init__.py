"""What the processes of a run do.

producers            producers, and transactions of the application
poll_members         members that poll
run_members          members that run a handler
transaction_members  members that read in transactions
watcher              retention, and ends and positions watched
"""
