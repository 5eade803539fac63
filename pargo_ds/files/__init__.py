"""Files and folders that are whole or absent, the hashes of folders, and locks."""
