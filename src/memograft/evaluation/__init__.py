"""Evaluation: ask many questions with several methods and count right answers. The command is `memograft eval`."""
