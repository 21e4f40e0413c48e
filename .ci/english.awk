# Reads `AREA FILE` lines, and prints `AREA PATTERN FILE:LINE: TEXT` for each place of a pattern; see .ci/english. Rust is
# divided: string literals are the area `messages`, doc comments `rustdoc`, other comments `comments`, names of functions
# `names`; unit tests belong to `tests`, of which only comments and names count. Of other programs comments count, and
# docstrings of Python.

function report(area, pattern, text, count) {
    gsub(/^[ \t]+/, "", text)
    while (count-- > 0) printf "%s %s %s:%d: %s\n", area, pattern, file, number, text
}

# Looks at one piece of prose.
function prose(area, text,    words, found) {
    words = " " text " "
    gsub(/[^A-Za-z;:?.|]+/, " ", words)
    gsub(/[;:?.|]/, " & ", words)
    gsub(/ +/, "  ", words)
    found = gsub(/ (Who|Whoever|Whom|Whose|What|Whatever)  ([^?]*$|[^?]*\.  )/, "&", words)
    found += gsub(/ (;|:|and|but|so|as|or|of|for|by|to|with|from|than)  who /, "&", words)
    report(area, "who", text, found)
    words = tolower(words)
    report(area, "agent", text, gsub(/ (nobody|somebody|anybody|whoever|whom) /, "&", words))
    report(area, "say", text, gsub(/ (tell|tells|told|telling|say|says|said|saying|speak|speaks|spoke|spoken|speaking|hear|hears|heard|hearing) /, "&", words))
    report(area, "idiom", text, gsub(/ (anew|beside|meanwhile|want  of|of  before|so  many|(go|goes|going|went|gone)  on) /, "&", words))
    report(area, "is-to", text, gsub(/ (is|are|was|were)  (not  |never  )?to  [a-z]+ /, "&", words))
    if (area == "names") return
    # Fine are: there is no, is no longer; and to wait or be left behind something, or to be behind a balancer.
    gsub(/ there  (is|are|was|were) /, " ", words)
    gsub(/ no  (longer|more|less|other|better|further|such) /, " ", words)
    report(area, "is-no", text, gsub(/ (is|are|was|were)  no /, "&", words))
    gsub(/ (wait|waits|leave|leaves|left|leaving)  ([a-z]+  )*behind /, " ", words)
    gsub(/ behind  (an?  |the  )?(arc|balancer|haproxy|load) /, " ", words)
    report(area, "behind", text, gsub(/ behind /, "&", words))
}

# A doc comment begins with its verb.
function first_word(area, text,    word) {
    if (match(text, /[A-Za-z]+/)) {
        word = substr(text, RSTART, RLENGTH)
        if (word ~ /^(It|Its|They|Their|Theirs|Them|He|His|That|Those|This|These|Who|Whose|Whom|Whoever|What|Whatever|Which|We|Our)$/)
            report(area, "pronoun", text, 1)
    }
}

# Divides a line of Rust into string literals and a comment. A literal that goes over lines is in `closing`, what ends it, and
# `is_raw`, whether a backslash means nothing in it.
function rust(line,    i, c, rest, text, name, was_doc) {
    if (line ~ /^[ \t]*#\[cfg\((test|all\(test.*)\)\]/) may_be_tests = 1
    else if (may_be_tests && line ~ /^[ \t]*(pub(\([a-z]+\))? )?mod [a-z_]+ \{/) is_tests = 1
    else if (line !~ /^[ \t]*#\[/) may_be_tests = 0

    if (closing == "" && match(line, /(^|[ \t])fn [a-z_0-9]+/)) {
        name = substr(line, RSTART, RLENGTH)
        gsub(/_/, " ", name)
        prose("names", name)
    }
    was_doc = in_doc
    in_doc = 0
    text = ""
    for (i = 1; i <= length(line); i++) {
        c = substr(line, i, 1)
        rest = substr(line, i)
        if (closing != "") {
            if (substr(rest, 1, length(closing)) == closing) {
                i += length(closing) - 1
                closing = ""
                literal(text)
                text = ""
            } else if (c == "\\" && !is_raw) {
                text = text " "
                i++
            } else text = text c
        } else if (rest ~ /^\/\/([\/!]([^\/]|$))/) {
            in_doc = 1
            if (!was_doc) first_word(is_tests ? "tests" : "rustdoc", substr(rest, 4))
            prose(is_tests ? "tests" : "rustdoc", substr(rest, 4))
            return
        } else if (rest ~ /^\/\//) {
            prose(is_tests ? "tests" : "comments", substr(rest, 3))
            return
        } else if (match(rest, /^b?r#*"/) && substr(line, i - 1, 1) !~ /[A-Za-z_0-9]/) {
            closing = substr(rest, 1, RLENGTH)
            gsub(/[^#]/, "", closing)
            closing = "\"" closing
            is_raw = 1
            i += RLENGTH - 1
        } else if (c == "\"") {
            closing = c
            is_raw = 0
        } else if (match(rest, /^'(\\.[^']*|[^'\\])'/)) i += RLENGTH - 1
    }
    if (closing != "") literal(text)
}

# Looks at a line of Python: comments, and docstrings, which begin a line. `in_string` is "docstring" or "other" within three
# quotes.
function python(area, line,    at) {
    if (in_string == "" && line ~ /^[ \t]*"""/) {
        in_string = "docstring"
        sub(/"""/, "", line)
    }
    at = index(line, "\"\"\"")
    if (in_string == "docstring") prose(area, at ? substr(line, 1, at - 1) : line)
    else if (in_string == "" && match(line, /(^|[ \t])# /)) prose(area, substr(line, RSTART))
    if (gsub(/"""/, "&", line) % 2) in_string = in_string == "" ? "other" : ""
}

# Looks at a line of JavaScript, TypeScript or Go.
function slashes(area, line) {
    if (in_comment || line ~ /^[ \t]*\/\*/) {
        in_comment = line !~ /\*\//
        prose(area, line)
    } else if (match(line, /(^|[ \t])\/\/ /)) prose(area, substr(line, RSTART))
}

function literal(text) {
    gsub(/\{[^{}]*\}/, "X", text)
    if (!is_tests) prose("messages", text)
}

{
    kind = $1
    file = substr($0, length(kind) + 2)
    number = 0
    closing = ""
    in_doc = may_be_tests = in_comment = 0
    in_string = ""
    is_tests = kind == "tests"
    is_python = file ~ /\.py$/
    has_slashes = file ~ /\.(c?js|mjs|ts|go)$/
    while ((getline line <file) > 0) {
        number++
        if (number == 1 && line ~ /^#!.*python3/) is_python = 1
        if (is_python) python(kind, line)
        else if (has_slashes) slashes(kind, line)
        else if (kind == "rust" || kind == "tests") rust(line)
        else if (kind == "scripts") { if (match(line, /(^|[ \t])# /)) prose(kind, substr(line, RSTART)) }
        else prose(kind, line)
    }
    close(file)
}
