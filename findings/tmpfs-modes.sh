#!/usr/bin/env bash
# runc gives a tmpfs the permissions of the directory below it, also if the option mode= of the mount has others; the
# kernel's default for a tmpfs is 1777 (tmpfs(5)). The owner is root in all cases. So whether a process that is not root can
# write to a tmpfs depends on a directory in the image that the tmpfs hides, and `--tmpfs /run:mode=1777` does not help.
#
# Needs root and Debian's packages runc and busybox-static, which it unpacks in a temporary directory. Exits with 1 if the
# behaviour has changed.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -r "$directory"' EXIT
cd "$directory"
apt-get download -qq -o APT::Sandbox::User=root runc busybox-static
for package in ./*.deb; do dpkg-deb --extract "$package" packages; done
runc=$PWD/packages/usr/sbin/runc
"$runc" --version | head -n 1
uname -sr

mkdir -p rootfs/{bin,proc,private,readable,open,explicit}
cp packages/bin/busybox rootfs/bin
chmod 700 rootfs/private
chmod 755 rootfs/readable rootfs/explicit
chmod 1777 rootfs/open
cat >config.json <<'JSON'
{
  "ociVersion": "1.0.2",
  "process": {
    "user": { "uid": 0, "gid": 0 }, "cwd": "/",
    "args": ["/bin/busybox", "stat", "-c", "%n %a %u", "/private", "/readable", "/open", "/explicit"]
  },
  "root": { "path": "rootfs", "readonly": true },
  "mounts": [
    { "destination": "/proc", "type": "proc", "source": "proc" },
    { "destination": "/private", "type": "tmpfs", "source": "tmpfs" },
    { "destination": "/readable", "type": "tmpfs", "source": "tmpfs" },
    { "destination": "/open", "type": "tmpfs", "source": "tmpfs" },
    { "destination": "/explicit", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"] }
  ],
  "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "network" }] }
}
JSON
found=$("$runc" --root "$PWD/state" run "finding-$$" </dev/null)
mkdir plain
plain=$(unshare --mount sh -c 'mount -t tmpfs tmpfs plain && stat -c "by mount(2) %a %u" plain')
printf '%s\n' "$found" "$plain"
expected=$'/private 700 0\n/readable 755 0\n/open 1777 0\n/explicit 755 0'
[[ $found == "$expected" && $plain == "by mount(2) 1777 0" ]] || { echo "the behaviour has changed" >&2; exit 1; }
