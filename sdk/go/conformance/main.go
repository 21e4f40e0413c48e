// The app with which fdpassctl app check checks this package.
//
//	go build -o conformance.app ./conformance && fdpassctl app check -- ./conformance.app
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"fdpassd"
)

type none struct{}

type spawned struct {
	PID  int  `json:"pid"`
	Open bool `json:"open"`
}

func main() {
	app := fdpassd.New(fdpassd.Name("conformance"), fdpassd.Version("1"), fdpassd.Concurrency(64))

	echoes := app.Counter("check_echoes", "Calls of check_echo.")
	lengths := app.Histogram("check_lengths", "The lengths of their params.", 10, 100, 1000)
	app.OnClose(func(client uint64) {
		fmt.Fprintf(os.Stderr, "<7>client %d has left\n", client)
	})

	fdpassd.Method(app, "check_echo", func(_ context.Context, params json.RawMessage) (json.RawMessage, error) {
		echoes.Inc()
		lengths.Observe(float64(len(params)))
		return params, nil
	}, fdpassd.Idempotent)

	// Waits for milliseconds, unless the call is cancelled before.
	fdpassd.Method(app, "check_sleep", func(ctx context.Context, ms int) (int, error) {
		select {
		case <-time.After(time.Duration(ms) * time.Millisecond):
			return ms, nil
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}, fdpassd.Idempotent)

	fdpassd.Method(app, "check_fault", func(_ context.Context, fault *fdpassd.Error) (none, error) {
		if fault == nil {
			return none{}, fdpassd.Fault("check_failed", "a fault on purpose")
		}
		return none{}, fault
	})

	fdpassd.Method(app, "check_crash", func(context.Context, none) (none, error) {
		panic("a crash on purpose")
	})

	fdpassd.Method(app, "check_null", func(context.Context, none) (*none, error) {
		return nil, nil
	})

	fdpassd.Method(app, "check_print", func(_ context.Context, line *string) (*none, error) {
		text := "a line on standard output"
		if line != nil {
			text = *line
		}
		fmt.Println(text)
		fmt.Fprintln(os.Stderr, "<4>a line on standard error")
		return nil, nil
	})

	// The child outlives the call.
	fdpassd.Method(app, "check_spawn", func(context.Context, none) (spawned, error) {
		child := exec.Command("sleep", "2")
		if err := child.Start(); err != nil {
			return spawned{}, err
		}
		go child.Wait()
		// The child may have opened a file with this number.
		file, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/3", child.Process.Pid))
		return spawned{child.Process.Pid, err == nil && strings.HasPrefix(file, "socket:")}, nil
	})

	app.Run()
}
