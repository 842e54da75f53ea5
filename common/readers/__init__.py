"""Readers of records that organisations keep: tables, arrays and folders of images, each checked as it is read."""
