"""A plugin for tmt, which looks every half minute whether a rebooted machine is back, and whether an ssh master that it
started can be used. Here a machine says on its console that it is back, and a master is looked at every second.

An ssh that asks while the machine goes down hangs: nobody is left to close its connection."""

import os
import pathlib
import subprocess

from tmt.guest import GuestSsh
from tmt.utils.wait import Waiting

READY = b"The machine is ready."

Waiting.__init__.__defaults__ = (1.0, 1.0)  # tick, tick_increase
perform_reboot = GuestSsh.perform_reboot


def wait_for_console(console, times):
    """Until the console has said `times` times that the machine is ready, or ten minutes are over."""
    with subprocess.Popen(["timeout", "600", "tail", "-n", "+1", "-f", console], stdout=subprocess.PIPE) as tail:
        for line in tail.stdout:
            times -= line.count(READY)
            if times <= 0:
                tail.terminate()
                break


def perform_reboot_and_listen(self, mode, action, wait, **hooks):
    """Lets tmt ask when the machine has said once more that it is ready."""
    console = pathlib.Path(os.environ["CONSOLE"])

    def act():
        times = console.read_bytes().count(READY) + 1
        try:
            action()
        finally:
            wait_for_console(console, times)

    return perform_reboot(self, mode, act, wait, **hooks)


GuestSsh.perform_reboot = perform_reboot_and_listen
