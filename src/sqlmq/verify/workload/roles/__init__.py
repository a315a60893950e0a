"""What the processes of a run do.

producers            producers, and transactions of the application
poll_members         group members that poll
run_members          group members that run a handler
transaction_members  group members that read in transactions
watcher              applies retention, and records ends and positions
"""
