"""Rows -> prompts, and the answers of one row's prompts -> one row again."""
