"""Fills a database for developers, through the rooms' own doors. Nothing that exists is overwritten."""
