"""Programs for the sandbox. t2 never imports them: an interpreter inside the sandbox runs their text."""
