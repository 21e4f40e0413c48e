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

	fdpassd.Method(app, "check_echo", func(_ context.Context, params json.RawMessage) (json.RawMessage, error) {
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

	fdpassd.Method(app, "check_fault", func(context.Context, none) (none, error) {
		return none{}, fdpassd.Fault("check_failed", "a fault on purpose")
	})

	fdpassd.Method(app, "check_crash", func(context.Context, none) (none, error) {
		panic("a crash on purpose")
	})

	fdpassd.Method(app, "check_null", func(context.Context, none) (*none, error) {
		return nil, nil
	})

	fdpassd.Method(app, "check_print", func(context.Context, none) (*none, error) {
		fmt.Println("check_print on standard output")
		fmt.Fprintln(os.Stderr, "<4>check_print on standard error")
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
