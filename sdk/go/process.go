package fdpassd

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
)

// The descriptor of the worker, or -1 if the daemon has not started this process.
var descriptor = -1

// The longest frame that the worker accepts, without its length.
var maxFrame = 1<<32 - 1

func init() {
	value, isApp := os.LookupEnv("FDPASSD_APP")
	if !isApp {
		return
	}
	if fd, err := strconv.Atoi(value); err == nil && fd > 2 {
		descriptor = fd
		// Programs that the app starts would keep the connection open.
		syscall.CloseOnExec(fd)
	}
	if limit, err := strconv.ParseUint(os.Getenv("FDPASSD_MAX_FRAME"), 10, 32); err == nil {
		maxFrame = int(limit)
	}
	os.Unsetenv("FDPASSD_APP")
	os.Unsetenv("FDPASSD_MAX_FRAME")
	if _, isZygote := os.LookupEnv("FDPASSD_PRELOAD"); isZygote {
		refuse("Go cannot fork its runtime: remove app.preload")
	}
	// The worker decides when the app ends. The service manager sends signals to all processes at a restart; SIGPIPE
	// comes when the log has no reader. A handler, because programs that the app starts would inherit SIG_IGN.
	dropped := make(chan os.Signal, 1)
	signal.Notify(dropped, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
}

// Reports that the app cannot fork the apps of all workers, and exits.
func refuse(why string) {
	body, _ := json.Marshal(map[string]string{"failed": why})
	syscall.Write(descriptor, append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), body...))
	os.Exit(1)
}

func isSocket(fd int) bool {
	var stat syscall.Stat_t
	return syscall.Fstat(fd, &stat) == nil && stat.Mode&syscall.S_IFMT == syscall.S_IFSOCK
}

// Writes an error to the log. Each line is a record with its level as in sd-daemon(3).
func logError(format string, arguments ...any) {
	text := strings.TrimRight(fmt.Sprintf(format, arguments...), "\n")
	text = strings.ReplaceAll(text, "\t", "    ") // A log escapes tabs.
	var lines bytes.Buffer
	for _, line := range strings.Split(text, "\n") {
		lines.WriteString("<3>")
		lines.WriteString(line)
		lines.WriteByte('\n')
	}
	os.Stderr.Write(lines.Bytes())
}

// Returns the command of this process, as a shell takes it.
func ownCommand() string {
	words := make([]string, len(os.Args))
	for i, word := range os.Args {
		words[i] = word
		if word == "" || strings.Trim(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789./:=@%+,_-") != "" {
			words[i] = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
		}
	}
	return strings.Join(words, " ")
}
