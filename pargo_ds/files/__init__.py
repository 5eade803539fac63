"""Files and folders that are whole or absent, and the hashes of folders."""
