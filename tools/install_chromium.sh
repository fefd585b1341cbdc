#!/bin/sh
# tools/install_chromium.sh: a Chromium for the tests of the page, from the system's packages, where there is none and this may install one.
# Never an error: without one these tests are skipped by name.
set -u

for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null && exit 0
done

if [ "$(id -u)" -eq 0 ]; then
    as_root=
elif sudo -n true 2>/dev/null; then
    as_root='sudo -n'
else
    as_root=false
fi
install() {
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends chromium
}
{ install || { $as_root apt-get update -qq && install; }; } >/dev/null 2>&1 </dev/null ||
    echo "no Chromium here, and none could be installed: the tests of the page are skipped. Try: the chromium package of your system"
exit 0
