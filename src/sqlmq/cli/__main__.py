"""Make ``python -m sqlmq.cli`` the same as ``sqlmq``, for where scripts are not on PATH."""

from sqlmq.cli import main

if __name__ == "__main__":
    main()
