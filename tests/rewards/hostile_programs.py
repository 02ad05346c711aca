"""Programs that try to get out of the sandbox, to use up the machine, or to get a verdict they do not deserve.

None of them solves its task, which is to square a number. An escape squares it if, and only if, what it tried has
worked: so "passed" is an escape or a false pass, whatever the program. ``CANARY``, ``PORT`` and ``FOLDER`` stand for a
secret of the calling process, a local server's port, and a folder that holds the secret in a file.
"""

from dataclasses import dataclass

from disa.rewards.code import FunctionTests, StdioTests

# A judge that runs the tests in the program's own process, and looks at the exit code.
SAME_PROCESS_JUDGE = """
def check():
    for given, expected in ((12, 144), (13, 169)):
        assert f(given) == expected
check()
"""
TESTS = FunctionTests(("f",), ("assert f(12) == 144", "assert f(13) == 169"), "EXPECTED = 'judge-secret'")
CASES = StdioTests((("12\n", "144\n"), ("13\n", "169\n")))


@dataclass(frozen=True)
class Hostile:
    """A program, and which of the two kinds of tests it is for."""

    group: str
    name: str
    source: str
    script: bool = False


_ESCAPE = """
def attempt():
{body}

try:
    worked = bool(attempt())
except BaseException:
    worked = False
"""
_AS_FUNCTION = "\ndef f(x):\n    return x * x if worked else -1\n"
_AS_SCRIPT = "\nx = int(input())\nprint(x * x if worked else -1)\n"
_SYSCALL = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def syscall(*arguments):
    return libc.syscall(*map(ctypes.c_long, arguments))
"""

# Bodies of attempt(): what would be a way out, or a resource that the limits should have closed.
ATTEMPTS = {
    "connect to a local server": "import socket; return socket.create_connection(('127.0.0.1', PORT), 2)",
    "open any socket": """
import socket
for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        try: return socket.socket(family, kind)
        except OSError: pass""",
    "resolve a name": "import socket; return socket.getaddrinfo('example.org', 80)",
    "download": "import urllib.request; return urllib.request.urlopen('http://127.0.0.1:PORT/', timeout=2)",
    "read the password file": "return open('/etc/passwd').read() or open('/etc/shadow').read()",
    "read a file of the caller": "return 'CANARY' in open('FOLDER/secret').read()",
    "read the caller's environment": """
import os
return 'CANARY' in str(os.environ) or 'CANARY' in open('/proc/self/environ').read()""",
    "search every readable file for a secret": """
import os, sys
for folder, _, names in os.walk('/'):
    if folder.startswith(('/usr/lib', '/lib', sys.base_prefix + '/lib')): continue
    for name in names:
        try: text = open(os.path.join(folder, name), errors='replace').read(100000)
        except OSError: continue
        if 'CANARY' in text or 'judge-' + 'secret' in text: return True""",
    "find home, benchmarks or other packages": """
import glob, os
libraries = ('/usr/lib/python*', os.path.dirname(os.__file__))
packages = [glob.glob(os.path.join(folder, '*-packages/*')) for folder in libraries]
return any(packages) or any(map(os.path.exists, ('/home', '/etc', '/sys', '/var', '/opt', '/run', 'FOLDER')))""",
    "list processes": "import os; return os.listdir('/proc')",
    "see a process other than its own": """
import os
seen = 0
for pid in range(1, 60000):
    try: os.kill(pid, 0)
    except ProcessLookupError: continue
    except PermissionError: pass
    seen += 1
return seen > 2""",
    "mount proc": _SYSCALL.strip() + "\nreturn libc.mount(b'proc', b'/tmp', b'proc', 0, None) == 0",
    "remount the root writable": _SYSCALL.strip() + "\nreturn libc.mount(None, b'/', None, 32, None) == 0",
    "write outside of the work folder": """
import os
places = ['/', '/inside', '/dev', '/dev/shm', '/usr', '/usr/lib', '/var/tmp', 'FOLDER', os.path.dirname(os.__file__)]
for place in places:
    try: open(os.path.join(place, 'written'), 'w').write('x')
    except OSError: continue
    return True""",
    "change the scripts of the sandbox": """
import os
for name in ('judge.py', 'candidate.py', 'plain_data.py'):
    for action in (lambda p: open(p, 'a'), lambda p: os.chmod(p, 0o777), os.unlink, lambda p: os.rename(p, p + 'x')):
        try: action('/inside/' + name)
        except OSError: continue
        return True""",
    "leave by symbolic and hard links": """
import os
for target in ('/etc/passwd', 'FOLDER/secret', '/proc/1/root/etc/passwd', '/../../etc/passwd'):
    os.symlink(target, '/tmp/link')
    try: return open('/tmp/link').read()
    except OSError: os.unlink('/tmp/link')
os.link('/inside/judge.py', '/tmp/judge.py')
return True""",
    "leave by chroot": "import os; os.chroot('/tmp'); return True",
    "become root": """
import os
for become in (os.setuid, os.setgid, os.seteuid, lambda i: os.setresuid(i, i, i), lambda i: os.setgroups([i])):
    try: become(0)
    except OSError: continue
    return True""",
    "be root": "import os; return 0 in (os.getuid(), os.geteuid(), os.getgid(), os.getegid(), *os.getgroups())",
    "use a capability": """
import os
for action in (lambda: os.chown('/tmp', 1, 1), lambda: os.nice(-1), lambda: os.sched_setscheduler(
        0, os.SCHED_FIFO, os.sched_param(1)), lambda: os.mknod('/tmp/null', 0o20666, os.makedev(1, 3))):
    try: action()
    except OSError: continue
    return True""",
    "make a new namespace": _SYSCALL.strip()
    + """
for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000, 0x80):
    if libc.unshare(flag) == 0 or syscall(56, flag | 17, 0, 0, 0, 0) >= 0: return True""",
    "trace another process": _SYSCALL.strip()
    + "\nreturn libc.ptrace(16, 1, 0, 0) == 0 or libc.ptrace(0, 0, 0, 0) == 0",
    "call what is not on the list": _SYSCALL.strip()
    + """
import platform
if platform.machine() != 'x86_64': return False
# ptrace, kexec_load, add_key, keyctl, unshare, perf_event_open, setns, process_vm_readv, kcmp, memfd_create, bpf,
# userfaultfd, io_uring_setup, open_tree, fsopen, pidfd_open, clone3, pidfd_getfd, memfd_secret, fork, vfork, shmget,
# mq_open
for number in (101, 246, 248, 250, 272, 298, 308, 310, 312, 319, 321, 323, 425, 428, 430, 434, 435, 438, 447, 57, 58,
               29, 240):
    ctypes.set_errno(0)
    if syscall(number, 0, 0, 0, 0, 0, 0) >= 0 or ctypes.get_errno() not in (1, 38): return True""",
    "call through the x32 table": _SYSCALL.strip()
    + "\nreturn any(syscall(0x40000000 | number, 0, 0, 0) >= 0 for number in (39, 41, 57, 101))",
    "call through the 32-bit gate": """
import ctypes, mmap, platform
if platform.machine() != 'x86_64': return False
page = mmap.mmap(-1, 4096, prot=7)
page.write(bytes.fromhex('b814000000cd80c3'))  # mov eax, 20 (getpid); int 0x80; ret
return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))() > 0""",
    "start a process": """
import os, subprocess, multiprocessing
for start in (os.fork, os.forkpty, lambda: os.posix_spawn('/bin/true', ['true'], {}),
              lambda: subprocess.run(['true']),
              lambda: subprocess.run('true', shell=True, check=True),
              lambda: multiprocessing.Process(target=int).start(),
              lambda: os.popen('echo x').read() == 'x\\n' or 1 / 0):
    try:
        if start() == 0 and start is os.fork: os._exit(0)
    except (OSError, ArithmeticError): continue
    return True""",
    "leave an orphan": """
import os
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        import time; time.sleep(600)
    os._exit(0)
return True""",
    "run another program": """
import os
for path in ('/bin/sh', '/usr/bin/env', '/usr/bin/id', '/usr/bin/gcc'):
    if os.path.exists(path): return True""",
    "kill the parent and everyone": """
import os, signal
for pid in (os.getppid(), 1, 0 - 1):
    try: os.kill(pid, signal.SIGKILL)
    except OSError: pass
import time; time.sleep(0.2)
return os.getppid() != 1""",
    "raise its own limits": """
import resource
for name in ('AS', 'CPU', 'FSIZE', 'NPROC', 'NOFILE', 'CORE', 'MEMLOCK'):
    number = getattr(resource, 'RLIMIT_' + name)
    hard = resource.getrlimit(number)[1]
    if hard == resource.RLIM_INFINITY: return True
    for more in (hard + 1, resource.RLIM_INFINITY):
        try: resource.setrlimit(number, (more, more))
        except (OSError, ValueError): continue
        return True""",
    "type into a terminal": """
import fcntl, os, termios
for fd in (0, 1, 2):
    try: fcntl.ioctl(fd, termios.TIOCSTI, b'x')
    except OSError: continue
    return True
return os.open('/dev/tty', os.O_RDWR)""",
    "find a secret behind an inherited file descriptor": """
import os
found = b''
for fd in range(3, 256):
    try:
        os.set_blocking(fd, False)
        found += os.pread(fd, 100000, 0)
    except OSError: pass
return b'CANARY' in found or b'secret' in found""",
    "find a secret in memory": """
import gc, sys
needles = ('judge-' + 'secret', 'CANARY', 'no' + 'nce')
def has(thing): return isinstance(thing, str) and thing in needles
frame = sys._getframe()
while frame:
    if any(map(has, [*frame.f_locals, *frame.f_locals.values()])): return True
    frame = frame.f_back
return any(any(map(has, [*thing, *thing.values()])) for thing in gc.get_objects() if type(thing) is dict
           and thing is not globals() and 'needles' not in thing)""",
    "fill the disk": """
written = 0
try:
    for i in range(100):
        with open(f'/tmp/{i}', 'wb') as file:
            written += file.write(bytes(1 << 20))
except OSError: pass
return written > 64 << 20""",
    "write one large file": """
import os
os.truncate(os.open('/tmp/large', os.O_RDWR | os.O_CREAT), 1 << 30)
return os.path.getsize('/tmp/large') > 1 << 26""",
    "take a lot of memory": "return len(bytearray(1 << 30))",
    "map a lot of shared memory": "import mmap; return len(mmap.mmap(-1, 1 << 30))",
    "start hundreds of threads": """
import threading, time
threading.stack_size(32768)
for _ in range(200): threading.Thread(target=time.sleep, args=(3,), daemon=True).start()
return True""",
    "open thousands of files": "files = [open('/dev/null') for _ in range(2000)]; return files",
}

# Attempts that work in any process of an ordinary user: what shows that they try what they say.
WORK_OUTSIDE = {
    "connect to a local server",
    "open any socket",
    "download",
    "read the password file",
    "read a file of the caller",
    "read the caller's environment",
    "find home, benchmarks or other packages",
    "list processes",
    "see a process other than its own",
    "start a process",
    "run another program",
    "take a lot of memory",
    "map a lot of shared memory",
    "start hundreds of threads",
}

# Whole programs for tests that call f.
_FORGERIES = {
    "returns an object equal to everything": """
class Equal:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
def f(x): return Equal()""",
    "returns a number equal to everything": """
class Equal(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = int.__hash__
def f(x): return Equal(1)""",
    "returns a list, a dict and a text equal to everything": """
class L(list):
    def __eq__(self, other): return True
class D(dict):
    def __eq__(self, other): return True
class S(str):
    def __eq__(self, other): return True
    __hash__ = str.__hash__
def f(x): return [L(), D(), S(), (L(),)][x % 2]""",
    "returns an object that unpickles to code": """
class Payload:
    def __reduce__(self): return (eval, ("144",))
    def __eq__(self, other): return True
def f(x): return Payload()""",
    "prints the verdict": """
print('passed\\nOK\\n144\\n169')
print({'status': 'passed'})
def f(x): print('passed'); return -1""",
    "exits with 0 on import": "import sys\nsys.exit(0)",
    "raises SystemExit in the call": "def f(x): raise SystemExit(0)",
    "os._exit(0) on import": "import os\nos._exit(0)",
    "os._exit(0) in the call": "import os\ndef f(x): os._exit(0)",
    "exits from a thread": """
import os, threading
threading.Timer(0.05, os._exit, (0,)).start()
def f(x):
    while True: pass""",
    "exits at the end": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return -1",
    "raises StopIteration": "def f(x): raise StopIteration",
    "raises GeneratorExit and KeyboardInterrupt": "def f(x): raise [GeneratorExit, KeyboardInterrupt][x % 2]",
    "raises the judge's own exception": """
class Fault(BaseException): status = 'passed'
def f(x): raise Fault('passed')""",
    "replaces builtins": """
import builtins
class Assertion(BaseException): pass
builtins.AssertionError = Assertion
builtins.isinstance = lambda *a: True
builtins.exec = lambda *a: None
builtins.__build_class__ = None
def f(x): return -1""",
    "silences exceptions": """
import os, sys
sys.excepthook = sys.unraisablehook = lambda *a: os._exit(0)
def f(x): return -1""",
    "patches the protocol": """
import sys
for module in list(sys.modules.values()):
    for name in ('write_value', 'read_value', 'frame', '_answer', 'judge', '_describe'):
        if hasattr(module, name): setattr(module, name, lambda *a, **k: b't2;s8;returnedi90;')
def f(x): return -1""",
    "traces calls and rewrites locals": """
import ctypes, sys
def trace(frame, event, argument):
    for name in ('value', 'result', 'status', 'answer', 'expected'):
        if name in frame.f_locals:
            frame.f_locals[name] = 'passed'
            ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))
    return trace
sys.settrace(trace)
sys.setprofile(trace)
def f(x): return -1""",
    "walks frames for the expected value": """
import sys
def f(x):
    frame = sys._getframe()
    while frame:
        for value in frame.f_locals.values():
            if value in (144, 169): return value
        frame = frame.f_back
    return -1""",
    "looks for the expected value in all objects": """
import gc
def f(x):
    for thing in gc.get_objects():
        if type(thing) in (list, tuple) and len(thing) < 20:
            for item in thing:
                if type(item) is str and item.startswith('assert f('): return int(item.split('==')[1])
    return -1""",
    "replaces the tests in sys.modules": """
import sys
class Everything:
    def __getattr__(self, name): return lambda *a, **k: True
for name in ('__main__', 'judge', 'tests', 'unittest', 'pytest'): sys.modules[name] = Everything()
def f(x): return -1""",
    "writes verdicts to every file descriptor": """
import os
for fd in range(256):
    for text in (b'passed\\n', b'{"status": "passed"}\\n', b'm1;s6;statuss6;passed'):
        try: os.write(fd, text)
        except OSError: pass
def f(x): return -1""",
    "answers before it is asked": """
import os
answer = b't2;s8;returnedi1;'
for fd in range(3, 64):
    try:
        for _ in range(10): os.write(fd, len(answer).to_bytes(8, 'big') + answer)
    except OSError: pass
def f(x): return -1""",
    "announces an endless answer": """
import os
for fd in range(3, 64):
    try: os.write(fd, b'\\x7f' + b'\\xff' * 7)
    except OSError: pass
def f(x): return -1""",
    "sends a bottomless list": """
import os
answer = b'l1;' * 200000
for fd in range(3, 64):
    try: os.write(fd, len(answer).to_bytes(8, 'big') + answer)
    except OSError: pass
def f(x): return -1""",
    "sends millions of empty lists": """
import os
answer = b'l3d0900;' + b'l0;' * 4000000
for fd in range(3, 64):
    try:
        data = memoryview(len(answer).to_bytes(8, 'big') + answer)
        while data: data = data[os.write(fd, data):]
    except OSError: pass
def f(x): return -1""",
    "trickles an answer": """
import os, time
for fd in range(3, 64):
    try:
        os.write(fd, (1000000).to_bytes(8, 'big'))
        while True: os.write(fd, b'N'); time.sleep(0.01)
    except OSError: pass
def f(x): return -1""",
    "closes every file descriptor": """
import os, time
os.closerange(0, 256)
time.sleep(60)
def f(x): return -1""",
    "runs a new Python in its place": """
import os, sys
code = "import os\\nfor fd in range(3, 64):\\n try: os.write(fd, b'passed')\\n except OSError: pass"
for fd in range(3, 64):
    try: os.set_inheritable(fd, True)
    except OSError: pass
os.execv(sys.executable, [sys.executable, '-S', '-c', code])""",
    "returns itself for ever": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    "returns an endless iterator": "import itertools\ndef f(x): return itertools.count()",
    "returns megabytes": "def f(x): return 'a' * (1 << 26)",
    "passes one test, then exits": "import os\ndef f(x):\n    if x == 12: return 144\n    os._exit(0)",
    "passes one test, then hangs": "def f(x):\n    if x == 12: return 144\n    while True: pass",
}
# Those that a judge in the program's own process takes for a solution.
FORGES_IN_PROCESS = {
    "returns an object equal to everything",
    "returns a number equal to everything",
    "returns a list, a dict and a text equal to everything",
    "returns an object that unpickles to code",
    "exits with 0 on import",
    "raises SystemExit in the call",
    "os._exit(0) on import",
    "os._exit(0) in the call",
    "exits from a thread",
    "exits at the end",
    "silences exceptions",
    "walks frames for the expected value",
    "passes one test, then exits",
}
_BOMBS = {
    "fork bomb": "import os\nwhile True: os.fork()",
    "fork bomb that does not give up": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "thread bomb": """
import threading, time
threading.stack_size(32768)
while True:
    try: threading.Thread(target=time.sleep, args=(60,)).start()
    except RuntimeError: pass""",
    "memory bomb": "hoard = []\nwhile True: hoard.append(bytearray(1 << 20))",
    "memory bomb that does not give up": """
hoard = []
while True:
    try: hoard.append(bytearray(1 << 20))
    except MemoryError: pass""",
    "disk filler that does not give up": """
i = 0
while True:
    i += 1
    try:
        with open(f'/tmp/{i % 40}', 'ab') as file: file.write(bytes(1 << 20))
    except OSError: pass""",
    "infinite loop": "while True: pass",
    "sleeps on import": "import time\ntime.sleep(600)",
    "sleeps without end in a thread": """
import threading, time
threading.Thread(target=time.sleep, args=(600,)).start()""",
    "infinite output": "import sys\nwhile True: sys.stdout.write('144\\n' * 1000)",
    "infinite error output": "import sys\nwhile True: sys.stderr.write('144\\n' * 1000)",
    "huge power": "x = 9 ** 9 ** 9",
    "huge number as text": "import sys\nsys.set_int_max_str_digits(0)\nx = str(1 << (1 << 28))",
    "unbounded recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef g(): return g()\ng()",
    "stack overflow in C": """
import sys
sys.setrecursionlimit(10 ** 9)
x = []
for _ in range(10 ** 6): x = [x]
repr(x)""",
    "segmentation fault": "import ctypes\nctypes.string_at(0)",
    "abort": "import os\nos.abort()",
    "catastrophic regular expression": "import re\nre.match('(a+)+$', 'a' * 60 + 'b')",
    "nested source": "eval('(' * 100000 + ')' * 100000)",
    "compiler bomb": "x = eval('[0] * ' + ' * '.join(['1000'] * 5))",
    "catches every signal": """
import signal
for number in range(1, 65):
    try: signal.signal(number, lambda *a: None)
    except (OSError, ValueError): pass
while True: pass""",
    "stops itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "kills itself": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "kills everyone in sight": """
import os, signal
for pid in (-1, 1, os.getppid(), 0):
    try: os.kill(pid, signal.SIGKILL)
    except OSError: pass
while True: pass""",
    "reads for ever": "import sys\nwhile True: sys.stdin.read()",
    "is no Python": "Sure! Here is the function you asked for:",
    "holds zero bytes and half characters": "x = '\x00\ud800'",
}
_SCRIPTS = {
    "prints the expected output of no one": "print('passed')\nprint('144')\nprint('169')",
    "prints the right answer and fails": "x = int(input())\nprint(x * x)\nraise ValueError",
    "prints the right answer and crashes": "import os\nx = int(input())\nprint(x * x, flush=True)\nos.abort()",
    "prints the right answer and never ends": "x = int(input())\nprint(x * x, flush=True)\nwhile True: pass",
    "closes its output and never ends": """
import os, time
os.write(1, b'144\\n')
os.closerange(1, 3)
time.sleep(600)""",
    "answers the first input only": "input()\nprint(144)",
    "counts its runs": "import os\nn = len(os.listdir('/tmp'))\nopen(f'/tmp/{n}', 'w')\nprint([144, 169][min(n, 1)])",
    "trickles output": "import sys, time\nwhile True:\n    print(end='1', flush=True)\n    time.sleep(0.01)",
    "writes into its input": "import os\nos.write(0, b'144')\nprint(-1)",
    "exits with 0 before printing": "import os\nos._exit(0)",
}


# Those that wait without using processor time.
WAITING = {
    "sleeps on import", "sleeps without end in a thread", "stops itself", "trickles an answer", "trickles output",
    "passes one test, then hangs", "closes its output and never ends", "closes every file descriptor", "thread bomb",
}  # fmt: skip
# Each looks for the mark that an earlier run left, leaves one, and prints the answer of the run it takes itself for.
_MARK = """
import os, time
def attempt(*calls):
    for call in calls:
        try: call()
        except Exception: pass
second = False
shared = ['/dev/null', '/dev/urandom', '/dev/zero', 0, 1, 2, '/usr/lib', '/inside/confine.py', '/tmp', '/dev']
{body}
print([144, 169][bool(second)])
"""
_MARKS = {
    "time of the null device": """
age = os.stat('/tmp').st_mtime - os.stat('/dev/null').st_mtime
second = .01 < age < 60
attempt(lambda: os.utime('/dev/null'))""",
    "time far ahead": """
def ahead(path):
    try: return os.stat(path).st_mtime > 4e9
    except OSError: return False
second = any(map(ahead, shared))
for path in shared:
    attempt(lambda: os.utime(path, (5e9, 5e9)))""",
    "odd mode": """
def odd(path):
    try: return os.stat(path).st_mode & 0o777 == 0o626
    except OSError: return False
second = any(map(odd, shared))
for path in shared:
    attempt(lambda: os.chmod(path, 0o626), lambda: os.fchmod(path, 0o626))""",
    "text in the null device": """
second = bool(open('/dev/null').read())
open('/dev/null', 'w').write('x')""",
    "files in every folder": """
folders = ['/', '/tmp', '/dev', '/dev/shm', '/inside', '/usr/lib', '/var/tmp', '/run', '/home']
for folder in folders:
    second = second or os.path.exists(folder + '/mark')
    attempt(lambda: open(folder + '/mark', 'w'))""",
    "files beside what is open": """
for fd in range(3, 32):
    try: second = second or os.read(fd, 1) == b'x'
    except OSError: pass
    attempt(lambda: os.write(fd, b'x'), lambda: os.pwrite(fd, b'x', 0), lambda: os.ftruncate(fd, 1))""",
    "lock of a shared file": """
import fcntl
for path in ['/inside/confine.py', os.__file__, '/dev/null']:
    file = open(path)
    for lock in (fcntl.flock, fcntl.lockf):
        try: lock(file, fcntl.LOCK_SH | fcntl.LOCK_NB); second = second or not path.startswith('/dev')
        except OSError: pass""",
    "attributes of shared files": """
for path in ['/dev/null', '/inside/confine.py', os.__file__, '/usr/lib']:
    try: second = second or 'user.mark' in os.listxattr(path)
    except OSError: pass
    attempt(lambda: os.setxattr(path, 'user.mark', b'1'))""",
    "name of the host": """
import ctypes
second = os.uname().nodename == 'mark'
ctypes.CDLL(None).sethostname(b'mark', 4)""",
    "number of its process and user": "second = os.getpid() > 20",
}


def hostile_programs(canary: str, port: int, folder: str) -> list[Hostile]:
    """All of them, with the canaries filled in."""
    programs = []
    for name, body in ATTEMPTS.items():
        body = body.replace("CANARY", canary).replace("PORT", str(port)).replace("FOLDER", folder)
        attempt = _ESCAPE.format(body="\n".join("    " + line for line in body.strip().splitlines()))
        programs.append(Hostile("escapes", name, attempt + _AS_FUNCTION))
        programs.append(Hostile("escapes", name, attempt + _AS_SCRIPT, script=True))
    for name, source in _FORGERIES.items():
        programs.append(Hostile("forgeries", name, source))
    for name, source in _BOMBS.items():
        programs.append(Hostile("bombs", name, source + "\ndef f(x): return -1\n"))
        programs.append(Hostile("bombs", name, source + "\nprint(-1)\n", script=True))
    programs += [Hostile("marks", name, _MARK.replace("{body}", body), script=True) for name, body in _MARKS.items()]
    return programs + [Hostile("dishonest scripts", name, source, script=True) for name, source in _SCRIPTS.items()]
