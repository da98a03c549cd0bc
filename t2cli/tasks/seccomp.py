"""The system calls that code in the sandbox may not make, as a seccomp filter for bubblewrap.

Namespaces and resource limits leave gaps that this closes: as root the kernel does not count processes; memory of
System V segments, memfds and file systems mounted in a further user namespace is counted by no limit of a process;
AF_VSOCK sockets belong to no network namespace. No process is made inside, so none outlives the program.
Refused calls fail with EPERM, which Python reports as PermissionError. Source: seccomp(2), linux/filter.h.
"""

from __future__ import annotations

import errno
import platform
import struct

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_CLONE_THREAD = 0x00010000
_X32 = 0x40000000  # a second set of numbers on x86_64
_CLONE3 = 435  # its flags are in memory, out of a filter's sight: ENOSYS makes the C library use clone

# The architecture's audit number, its clone, and what is refused, by number. In this order: fork vfork ptrace
# process_vm_readv process_vm_writev kcmp; socket; shmget shmat semget msgget mq_open memfd_create memfd_secret;
# unshare setns mount umount2 pivot_root chroot; keyctl add_key request_key bpf perf_event_open userfaultfd;
# name_to_handle_at open_by_handle_at personality quotactl acct reboot swapon swapoff; kexec and modules; fanotify_init
# pidfd_getfd; io_uring and the new mount calls.
_NEWER = (425, 426, 427, 428, 429, 430, 431, 432, 433, 438, 442, 447)
_REFUSED_X86_64 = (
    *(57, 58, 101, 310, 311, 312, 41, 29, 30, 64, 68, 240, 319, 272, 308, 165, 166, 155, 161, 250, 248, 249),
    *(321, 298, 323, 303, 304, 135, 179, 163, 169, 167, 168, 246, 320, 175, 313, 176, 300, *_NEWER),
)
_REFUSED_AARCH64 = (
    *(117, 270, 271, 272, 198, 194, 196, 190, 186, 180, 279, 97, 268, 40, 39, 41, 51, 219, 217, 218, 280, 241),
    *(282, 264, 265, 92, 60, 89, 142, 224, 225, 104, 294, 105, 273, 106, 262, *_NEWER),
)
_MACHINES: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "x86_64": (0xC000003E, 56, _REFUSED_X86_64),
    "aarch64": (0xC00000B7, 220, _REFUSED_AARCH64),
}


def program(machine: str | None = None) -> bytes | None:
    """Return the filter for `machine` (default: this one) as BPF instructions; None where none is known.

    Threads are allowed, processes are not.
    """
    if (known := _MACHINES.get(machine or platform.machine())) is None:
        return None
    architecture, clone, refused = known
    deny = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        deny,
        (_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]
    for number in refused:
        code += [(_EQUAL, 0, 1, number), deny]
    code += [
        (_EQUAL, 0, 3, clone),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_ANY_BIT, 1, 0, _CLONE_THREAD),
        deny,
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)
