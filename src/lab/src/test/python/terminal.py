"""A person at a pseudo-terminal who chats with the command given: ChatCommandTest runs it."""
import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time

PATIENCE = 120  # seconds

pid, terminal = pty.fork()
if pid == 0:
    os.environ["TERM"] = "xterm"
    os.execv(sys.argv[1], sys.argv[1:])
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
shown = b""


def wait_for(pattern):
    """Reads what is shown until it has the pattern, and forgets it."""
    global shown
    end = time.time() + PATIENCE
    while not re.search(pattern, shown, re.DOTALL):
        if time.time() > end:
            sys.exit(f"not shown: {pattern}\n{shown!r}")
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                shown += os.read(terminal, 4096)
            except OSError:
                sys.exit(f"ended before {pattern}\n{shown!r}")
    seen, shown = shown, b""
    return seen


def say(text):
    os.write(terminal, text)


banner = wait_for(rb"/help lists the commands.*> ")
if b"WARNING" in banner or b"SLF4J" in banner:
    sys.exit(f"a warning: {banner!r}")
say(b"Tell me a story.\r")
wait_for(rb"\w+ \w+ \w+ \w+ \w+ \w+")  # the answer has begun, and would not end
say(b"\x03")
wait_for(rb"\[stopped\].*> ")
say(b"half a line\x03")
wait_for(rb"> ")
say(b"/help\r")
wait_for(rb"what the cache holds.*> ")
say(b"/system \\\r")
wait_for(rb"\. ")
say(b"Two lines.\r")
wait_for(rb"A new conversation.*> ")
say(b"\x10")  # Ctrl-P: the line before, from the history
wait_for(rb"Two lines")
say(b"\x03")
wait_for(rb"> ")
say(b"Hello again.\r")
wait_for(rb"\w+ \w+ \w+ \w+ \w+ \w+")
say(b"\x03")
wait_for(rb"\[stopped\].*> ")
say(b"\x04")
end = time.time() + PATIENCE
while time.time() < end:
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        sys.exit(os.waitstatus_to_exitcode(status))
    if select.select([terminal], [], [], 0.1)[0]:
        try:
            os.read(terminal, 4096)
        except OSError:
            pass
sys.exit("Ctrl-D did not end the chat")
