"""`sqlmq demo`: a demonstration in ten seconds.

command  the command: starts processes, kills one, compares the journals
worker   the program of these processes
journal  the files in which they record messages
view     the table and the lines on the screen
"""
