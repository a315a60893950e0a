"""`sqlmq demo`: the main job, shown in some seconds.

command  the command: starts processes, kills one, counts
worker   what these processes run
journal  what they write down
view     what is shown of it
"""
