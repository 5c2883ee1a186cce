"""`how: image-tools` of tmt's step `provision`: a machine in QEMU, built of OCI images for the occasion, as `image-tools build` and
`image-tools boot` make it. tmt finds this file by TMT_PLUGINS, and the program in PATH or by the key `tools`.

    provision:
        how: image-tools
        image: oci:os                # what is booted, as `image-tools build --image` takes it
        stage: oci:os2               # what is staged on its disk: the first reboot is the update
        bootloader: grub             # systemd-boot unless told
        boot-type: uki               # bls unless told
        build: --boot-partition      # more words for `image-tools build`, as for a shell
        boot: --memory 2048          # more words for `image-tools boot`

With `disk: FILE` in place of images, a copy of this disk is booted. `keep: FILE` has the disk afterwards. `ready: TEXT` is what the
machine says on its console at each boot when it can be worked with; without it, tmt asks by ssh until there is an answer."""

import os
import pathlib
import select
import shlex
import signal
import socket
import subprocess
from typing import Optional

import tmt.guest
import tmt.steps
import tmt.steps.provision
import tmt.utils
from tmt.container import container, field
from tmt.utils import ProvisionError

PATIENCE = 600  # seconds, for a shutdown or a boot under emulation


def text(says, **more):
    """A key of the plan, and an option of `tmt run provision`."""
    return field(default=None, metavar="TEXT", help=says, **more)


@container
class ImageToolsGuestData(tmt.guest.GuestSshData):
    """What a plan says of the machine, and what tmt keeps of one that runs."""

    _OPTIONLESS_FIELDS = (*tmt.guest.GuestSshData._OPTIONLESS_FIELDS, "process")

    image: Optional[str] = text("The image that is booted.", option=("-i", "--image"))
    stage: Optional[str] = text("The image that is staged.", option="--stage")
    bootloader: Optional[str] = text("systemd-boot or grub.", option="--bootloader")
    boot_type: Optional[str] = text("bls or uki.", option="--boot-type")
    disk: Optional[str] = text("A disk image, of which a copy is booted.", option="--disk")
    keep: Optional[str] = text("Where the disk is afterwards.", option="--keep")
    ready: Optional[str] = text("What the console says when a boot is done.", option="--ready")
    console: Optional[str] = text("Where the console is logged.", option="--console")
    tools: Optional[str] = text("The program image-tools.", option="--tools")
    build: Optional[str] = text("More words for image-tools build.", option="--build")
    boot: Optional[str] = text("More words for image-tools boot.", option="--boot")
    process: Optional[int] = None


@container
class ProvisionImageToolsData(ImageToolsGuestData, tmt.steps.provision.ProvisionStepData):
    """The same as the step keeps it."""


class GuestImageTools(tmt.guest.GuestSsh):
    """The machine. `image-tools boot` keeps it while its program waits for the end of a pipe with a name."""

    _data_class = ImageToolsGuestData
    machine = None  # where this tmt has started it

    @property
    def is_ready(self):
        return self.process is not None and super().is_ready

    @property
    def dir(self):
        """What is there as long as the machine is: beside the plan's own directory, which tmt copies into the guest."""
        plan = self.parent.plan.pathless_safe_name
        return pathlib.Path(str(self.parent.run_workdir), f"machine-{plan}-{self.safe_name}")

    def start(self):
        if self.is_dry_run or self.is_ready:
            return
        self.dir.mkdir(parents=True, exist_ok=True)
        disk = pathlib.Path(self.keep or self.dir / "disk.raw").absolute()
        if self.disk:
            self.call("cp", "--sparse=always", self.disk, disk)
        elif self.image:
            typed = {"image": self.image, "stage": self.stage, "bootloader": self.bootloader, "boot-type": self.boot_type}
            words = [word for name, value in typed.items() if value for word in (f"--{name}", value)]
            self.call(self.tools or "image-tools", "build", *words, *shlex.split(self.build or ""), "--output", disk)
        else:
            raise ProvisionError("how: image-tools needs an image, or a disk")
        if not self.key:
            self.call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "tmt", "-f", self.dir / "key")
            self.key = [tmt.utils.Path(str(self.dir / "key"))]
        if self.port is None:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
        self.console = str(pathlib.Path(self.console or self.dir / "console.log").absolute())
        self.primary_address = self.topology_address = "127.0.0.1"
        self.switch_on(disk)
        self.verbose("port", str(self.port), "green")

    def call(self, *words):
        """Runs a program to its end."""
        done = subprocess.run(list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise ProvisionError(f"{words[0]} {words[1]} failed: {done.stderr.strip()}")

    def switch_on(self, disk):
        """Until image-tools has found the machine ready."""
        held, log = self.dir / "held", self.dir / "boot.log"
        os.mkfifo(held)
        hold = ["sh", "-c", 'echo ready; read -r _ <"$0" || :', str(held)]
        words = [self.tools or "image-tools", "boot", str(disk), "--quiet", "--log", self.console, "--ssh", str(self.port)]
        words += ["--authorized-key", f"{self.key[0]}.pub", *shlex.split(self.boot or ""), "--", *hold]
        with log.open("w") as errors:
            self.machine = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True)
        self.process = self.machine.pid
        if "ready" not in (line.strip() for line in self.machine.stdout):
            self.machine.wait()
            self.process = None
            raise ProvisionError(f"the machine did not boot: {log.read_text().strip()}")

    def perform_reboot(self, mode, action, wait, **hooks):
        """Asks again each second, and where the machine says when it is ready, not before: an ssh that asks while a machine goes
        down hangs, for nobody is left to close its connection."""
        wait.tick = wait.tick_increase = 1.0
        if not self.ready:
            return super().perform_reboot(mode, action, wait, **hooks)

        def act():
            said = pathlib.Path(self.console).read_bytes().count(self.ready.encode()) + 1
            try:
                action()
            finally:
                self.listen(said)

        return super().perform_reboot(mode, act, wait, **hooks)

    def listen(self, times):
        """Until the console has said `times` times that the machine is ready."""
        follow = ["timeout", str(PATIENCE), "tail", f"--pid={self.process}", "-n", "+1", "-f", self.console]
        with subprocess.Popen(follow, stdout=subprocess.PIPE) as tail:
            for line in tail.stdout:
                times -= line.count(self.ready.encode())
                if times <= 0:
                    tail.terminate()
                    break

    def stop(self):
        super().stop()
        if self.process is None:
            return
        held = self.dir / "held"
        try:
            process = os.pidfd_open(self.process)
        except ProcessLookupError:
            process = None
        if process is not None:
            # Whoever opens it lets the program read its end, and image-tools presses the power button.
            try:
                os.close(os.open(held, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:
                signal.pidfd_send_signal(process, signal.SIGTERM)
            is_off, _, _ = select.select([process], [], [], PATIENCE)
            if not is_off:
                signal.pidfd_send_signal(process, signal.SIGTERM)
                self.warn("the machine did not go down when its power button was pressed")
            os.close(process)
        held.unlink(missing_ok=True)
        self.process = None
        if self.machine and self.machine.wait():
            raise tmt.utils.GeneralError(f"the machine failed: {(self.dir / 'boot.log').read_text().strip()}")
        self.info("machine", "off", "green")

    def remove(self):
        if not self.keep:
            (self.dir / "disk.raw").unlink(missing_ok=True)


def known_to_lint():
    """tmt knows the schemas of its own plugins only (1.78), and calls what it does not know wrong."""
    texts = ("image", "stage", "build", "boot", "disk", "keep", "ready", "console", "tools", "name", "user", "key")
    schema = {
        "$id": "/schemas/provision/image-tools",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "how": {"enum": ["image-tools"]},
            "bootloader": {"enum": ["systemd-boot", "grub"]},
            "boot-type": {"enum": ["bls", "uki"]},
            "port": {"type": "integer"},
            "become": {"type": "boolean"},
            "role": {"$ref": "/schemas/common#/definitions/role"},
            "environment": {"$ref": "/schemas/common#/definitions/environment"},
            "when": {"$ref": "/schemas/common#/definitions/when"},
            "ssh-option": {"$ref": "/schemas/common#/definitions/one_or_more_strings"},
            **dict.fromkeys(texts, {"type": "string"}),
        },
        "required": ["how"],
    }
    extend = tmt.utils._patch_plan_schema

    def extend_with_ours(plan, store):
        store[schema["$id"]] = schema
        extend(plan, store)

    tmt.utils._patch_plan_schema = extend_with_ours


known_to_lint()


@tmt.steps.provides_method("image-tools")
class ProvisionImageTools(tmt.steps.provision.ProvisionPlugin[ProvisionImageToolsData]):
    """Boot a machine that is built of OCI images, by ``image-tools build`` and ``image-tools boot``."""

    _data_class = ProvisionImageToolsData
    _guest_class = GuestImageTools
    _thread_safe = True
    _guest = None

    def go(self, *, logger=None):
        super().go(logger=logger)
        data = ImageToolsGuestData.from_plugin(self)
        data.show(verbose=self.verbosity_level, logger=self._logger)
        self._guest = GuestImageTools(logger=self._logger, data=data, name=self.name, parent=self.step)
        self._guest.start()
        self._guest.setup()
