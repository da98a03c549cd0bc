"""Programs that want to do harm, or to be called right without being right; data for test_hostile.py.

Each defines `double`. The tests it meets are of double(3) and double(10), so that it passes if and only if it got its
way: it returns twice its argument only where the harm was done, or hopes that something else is taken for that.
SECRET, OUTSIDE and PORT stand for a file of the user, a folder of the user, and a server on the loopback address.
"""

NEVER_ENDS = {
    "endless loop": "while True:\n    pass",
    "endless call": "def double(x):\n    while True:\n        pass",
    "sleeps": "import time\ndef double(x):\n    time.sleep(10**6)\n    return 2 * x",
    "ignores signals": """
import signal
for each in range(1, 65):
    try:
        signal.signal(each, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
while True:
    pass
""",
    "prints without end": "while True:\n    print('x' * 10**6)",
    "infinite generator": "def double(x):\n    while True:\n        yield x",
    "threads that go on": """
import threading
def loop():
    while True:
        pass
for _ in range(4):
    threading.Thread(target=loop).start()
def double(x):
    while True:
        pass
""",
}

USES_UP = {
    "fork bomb": """
import os
def double(x):
    for _ in range(100):
        os.fork()
    return 2 * x
""",
    "spawns": """
import subprocess, sys
def double(x):
    subprocess.run([sys.executable, '-c', ''])
    return 2 * x
""",
    "vfork by hand": """
import ctypes
def double(x):
    libc = ctypes.CDLL(None)
    return 2 * x if libc.syscall(57) >= 0 else None
""",
    "thread bomb": """
import threading, time
def double(x):
    for _ in range(2000):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    return 2 * x
""",
    "memory at once": "def double(x):\n    return len(bytearray(2 * 10**9)) and 2 * x",
    "memory in pieces": "hoard = []\nwhile True:\n    hoard.append(bytearray(10**6))",
    "memory behind the limit's back": """
import os
def double(x):
    fd = os.memfd_create("hoard")
    return 2 * x
""",
    "shared memory": """
import ctypes
def double(x):
    return 2 * x if ctypes.CDLL(None).shmget(0, 10**8, 0o1777) >= 0 else None
""",
    "fills the disk": """
import os
def double(x):
    written = 0
    for i in range(100):
        with open(f"/tmp/{i}", "wb") as file:
            written += file.write(b"x" * 10**6)
    return 2 * x
""",
    "fills the kernel's memory with links": """
import os
def double(x):
    for i in range(10**6):
        os.symlink("a", f"/tmp/{i}")
    return 2 * x
""",
    "fills memory by /dev/shm": "def double(x):\n    open('/dev/shm/x', 'wb').write(b'x')\n    return 2 * x",
    "huge file": """
import os
def double(x):
    with open("/tmp/huge", "wb") as file:
        file.truncate(10**9)
    return 2 * x
""",
    "opens many files": "def double(x):\n    kept = [open('/dev/null') for _ in range(1000)]\n    return 2 * x",
    "huge number": "def double(x):\n    return 10 ** 10 ** 9",
    "long number": "def double(x):\n    return (1 << 10**7) + 2 * x",
    "huge text": "def double(x):\n    return 'x' * 10**8",
    "deep recursion": "def double(x):\n    return double(x) + 1",
    "crash by recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef double(x):\n    return double(x) + 1",
    "deep list": """
def double(x):
    nested = []
    for _ in range(200_000):
        nested = [nested]
    return nested
""",
    "list that holds itself": "def double(x):\n    own = []\n    own.append(own)\n    return own",
    "colliding hashes": "def double(x):\n    return {i * (2**61 - 1) for i in range(40_000)}",
}

REACHES_OUT = {
    "connects": """
import socket
def double(x):
    socket.create_connection(('127.0.0.1', PORT), timeout=2)
    return 2 * x
""",
    "connects by name": """
import socket
def double(x):
    return 2 * x if socket.gethostbyname('example.com') else None
""",
    "asks the hypervisor": "import socket\ndef double(x):\n    socket.socket(40, socket.SOCK_STREAM)\n    return 2 * x",
    "reads a file": "def double(x):\n    return 2 * x if open('SECRET').read() else None",
    "reads the password file": "def double(x):\n    return 2 * x if open('/etc/passwd').read() else None",
    "lists homes": """
import os
def double(x):
    found = [place for place in ("/home", "/root", "/Users", os.path.expanduser("~")) if os.path.isdir(place)]
    return 2 * x if any(name not in (".pyenv", ".local") for place in found for name in os.listdir(place)) else None
""",
    "reads the environment": "import os\ndef double(x):\n    return 2 * x if os.environ.get('T2_HOME') else None",
    "looks at processes": "import os\ndef double(x):\n    return 2 * x if os.listdir('/proc') else None",
    "writes outside": """
import os, sys
def double(x):
    places = ["OUTSIDE", "/", "/usr", "/usr/lib", "/dev", "/var", "/etc", "/home", sys.base_prefix, os.__file__]
    for place in places:
        try:
            with open(place if os.path.isfile(place) else os.path.join(place, "mark"), "a") as file:
                file.write("x")
            return 2 * x
        except OSError:
            pass
""",
    "removes": "import os\ndef double(x):\n    os.remove('SECRET')\n    return 2 * x",
    "makes a namespace": """
import ctypes
def double(x):
    return 2 * x if ctypes.CDLL(None).unshare(0x10000000) == 0 else None
""",
    "mounts": """
import ctypes
def double(x):
    return 2 * x if ctypes.CDLL(None).mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0 else None
""",
    "raises its limits": """
import resource
def double(x):
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    return 2 * x
""",
    "traces": "import ctypes\ndef double(x):\n    return 2 * x if ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0 else None",
    "becomes root": "import os\ndef double(x):\n    os.setuid(0)\n    return 2 * x",
}

KILLS = {
    "kills its parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "kills all": "import os, signal\ndef double(x):\n    os.kill(-1, signal.SIGKILL)",
    "kills its group": "import os, signal\ndef double(x):\n    os.killpg(0, signal.SIGKILL)",
    "kills itself": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "closes descriptors": "import os\nos.closerange(0, 1024)\ndef double(x):\n    return 2 * x",
    "leaves a child": """
import os
def double(x):
    if os.fork() == 0:
        os.setsid()
        while True:
            pass
    return 2 * x
""",
}

CHEATS = {
    "exits well": "import sys\nsys.exit(0)",
    "exits well in the call": "import sys\ndef double(x):\n    sys.exit(0)",
    "exits at once": "import os\nos._exit(0)",
    "exits at once in the call": "import os\ndef double(x):\n    os._exit(0)",
    "prints success": "print('p')\nprint('started')\nprint('v')\ndef double(x):\n    print('OK', 'passed', 'p')",
    "writes success everywhere": """
import os
def double(x):
    for fd in range(64):
        for text in (b"p\\n", b"v\\np\\n", b"vtrue\\n", b'{"passed": true}\\n', b"\\np\\n"):
            try:
                os.write(fd, text)
            except OSError:
                pass
""",
    "writes success before it is asked": """
import os
for fd in range(64):
    try:
        os.write(fd, b"v\\np\\np\\np\\n")
    except OSError:
        pass
""",
    "equals everything": """
class Anything:
    def __eq__(self, other):
        return True
    def __ne__(self, other):
        return False
    __hash__ = None
def double(x):
    return Anything()
""",
    "a number that equals everything": """
class Anything(int):
    def __eq__(self, other):
        return True
    def __repr__(self):
        return "6"
    __str__ = __repr__
def double(x):
    return Anything()
""",
    "a list that equals everything": """
class Anything(list):
    def __eq__(self, other):
        return True
def double(x):
    return Anything([0])
""",
    "patches builtins": """
import builtins, operator
for name in ("all", "any", "abs", "len", "set", "sorted", "list", "isinstance", "AssertionError", "exec", "compile"):
    setattr(builtins, name, lambda *args, **kwargs: True)
operator.eq = lambda a, b: True
builtins.AssertionError = type("Never", (BaseException,), {})
def double(x):
    return 0
""",
    "patches unittest": """
import unittest
unittest.TestCase.assertEqual = lambda *args: None
unittest.TestCase.run = lambda *args: None
def double(x):
    return 0
""",
    "patches what serves it": """
import sys
main = sys.modules["__main__"]
for name in list(vars(main)):
    if not name.startswith("__"):
        setattr(main, name, lambda *args, **kwargs: "p")
""",
    "skips assertions": """
import sys
class Flags:
    optimize = 2
sys.flags = Flags()
__debug__2 = False
def double(x):
    return 0
""",
    "reads the tests from frames": """
import sys
def double(x):
    frame = sys._getframe()
    while frame:
        for value in [*frame.f_locals.values(), *frame.f_globals.values(), *frame.f_code.co_consts]:
            if isinstance(value, (str, bytes)) and "20" in str(value) and "dou" + "ble(3)" in str(value):
                return 2 * x
        frame = frame.f_back
""",
    "reads the tests from memory": """
import gc
def double(x):
    needle = " ".join(["assert", "double"])  # not a constant of its own, which it would find
    for each in gc.get_objects():
        values = each.values() if type(each) is dict else each if type(each) in (list, tuple) else ()
        if any(isinstance(value, str) and needle in value for value in values):
            return 2 * x
""",
    "reads the tests from descriptors": """
import os
def double(x):
    for fd in range(64):
        try:
            os.set_blocking(fd, False)
            if b"assert" in os.read(fd, 1 << 20) or b"assert" in os.pread(fd, 1 << 20, 0):
                return 2 * x
        except OSError:
            pass
""",
    "reads the tests from files": """
import os
def double(x):
    for top in ("/tmp", "/proc", "/dev", "/run", "/var", "/home", "/root", "/t2"):
        for folder, _, names in os.walk(top):
            for name in names:
                try:
                    if "test_hostile" in name or "assert double" in open(os.path.join(folder, name)).read(10**6):
                        return 2 * x
                except (OSError, ValueError):
                    pass
""",
    "runs at exit": "import atexit, os\natexit.register(lambda: (os.write(1, b'p\\n'), os._exit(0)))",
    "a constant": "def double(x):\n    return 6",
    "identity": "def double(x):\n    return x",
    "not a number": "def double(x):\n    return float('nan')",
    "raises what ends a loop": "def double(x):\n    raise StopIteration",
    "raises what a test raises": "def double(x):\n    raise AssertionError",
    "defines what tests use": """
def check(candidate):
    pass
def all(values):
    return True
def map(f, values):
    return []
""",
    "no function": "double = 6",
    "syntax error": "def double(x) return 2 * x",
    "nul": "def double(x):\n    return 2 * x\x00",
    "half a surrogate": "def double(x):\n    return '\\ud800'",
}
