#!/bin/bash
# corpus.sh OUT - Chinese text from Debian's documentation: OUT/train.jsonl and OUT/held-out.jsonl, one document a line.
#
# Packages are downloaded and unpacked, not installed. Needs apt-get, w3m and jq; two minutes.
set -euo pipefail
[ $# = 1 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 2; }
for tool in apt-get dpkg-deb w3m jq; do
    command -v $tool >/dev/null || { echo "corpus.sh: $tool is missing: apt-get install w3m jq"; exit 1; }
done
packages=(debian-reference-zh-cn debian-faq-zh-cn maint-guide-zh-cn debian-edu-doc-zh-cn manpages-zh libreoffice-help-zh-cn
    gimp-help-zh-cn)
mkdir -p "$1"
out=$(cd "$1" && pwd) work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/text"
cd "$work"
apt-get download -q "${packages[@]}"

# Of a manual page: no comments, requests, fonts and other escapes.
manual=(-e '/^[.'\'']\\"/d; s/^\.[A-Za-z]\{1,3\} *//; s/\\f[A-Z(][A-Z]*//g; s/\\-/-/g'
    -e 's/\\[&%|^]//g; s/\\(em/-/g; s/\\e/\\/g')

# Web pages with each paragraph on one line; manual pages.
for deb in *.deb; do
    mkdir files && dpkg-deb -x "$deb" files
    n=0
    while IFS= read -r -d '' page; do
        n=$((n + 1)) text=$work/text/${deb%%_*}-$(printf %05d $n)
        case $page in
        *.html) w3m -dump -cols 100000 -I utf-8 -O utf-8 -T text/html "$page" >"$text" || true ;;
        *) zcat "$page" | sed "${manual[@]}" >"$text" ;;
        esac
    done < <(find files \( -name '*.html' -o -path '*/zh_CN/*.gz' \) -print0 | sort -z)
    rm -r files
done

# Lines with Chinese in them that were not seen before; documents of 200 characters or more; every 40th is held out.
export LC_ALL=C.UTF-8
cd text
for f in *; do
    iconv -f utf-8 -t utf-8 -c "$f" | grep -P '\p{Han}' | sed -e 's/[[:space:]]\+/ /g; s/^ //; s/ $//' >"$f.zh" || true
done
awk '!seen[$0]++ {f = FILENAME ".once"; if (f != last) {if (last) close(last); last = f} print > f}' ./*.zh
n=0
for f in *.once; do
    [ "$(wc -m <"$f")" -ge 200 ] || continue
    n=$((n + 1)) part=train
    [ $((n % 40)) != 0 ] || part=held-out
    jq -cRs '{text: .}' "$f" >>"$work/$part.jsonl"
done
mv "$work/train.jsonl" "$work/held-out.jsonl" "$out/"
wc -lm "$out/train.jsonl" "$out/held-out.jsonl"
