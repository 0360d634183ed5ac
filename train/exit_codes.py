"""What a process of a training phase says by ending: the one list of exit codes, the same for a rank and for `rumpun`.

75 is EX_TEMPFAIL of sysexits.h ("try again later"): batch systems and scripts can tell it from a failure.
"""

from __future__ import annotations

DONE = 0
"""Finished."""
DEFECT = 1
"""An exception that nobody meant, or a rank that was killed."""
MISTAKE = 2
"""A mistake that the user can mend; one line says which."""
STOPPED = 75
"""Asked to stop, and saved: the same command goes on from there."""
HUNG = 76
"""Nobody moved for launch.hang_after_s; a verdict line says who held up the others."""
DIVERGED = 77
"""The loss stayed bad after all rewinds that [guard] allows."""
SUPERSEDED = 78
"""A newer start of the same phase has taken over its history; this one has changed nothing since. No failure."""
INTERRUPTED = 130
"""^C, twice."""
