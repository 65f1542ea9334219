"""Set-up tools of the repository; not part of the installed package."""
