// The app of the tests, with the package for Go.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"fdpassd"
)

type order struct {
	Number int `json:"number"`
	MS     int `json:"ms"`
}

func main() {
	app := fdpassd.New(fdpassd.Concurrency(64))
	var orders *os.File

	app.Start(func(context.Context) (err error) {
		// A process in a session of its own, which has no open descriptors of the app.
		stray := exec.Command("tail", "-f", "/dev/null")
		stray.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := stray.Start(); err != nil {
			return err
		}
		orders, err = os.OpenFile(os.Getenv("ORDERS"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
		return err
	})

	fdpassd.Method(app, "echo", func(_ context.Context, params json.RawMessage) (json.RawMessage, error) {
		time.Sleep(2 * time.Millisecond)
		return params, nil
	}, fdpassd.Idempotent)

	fdpassd.Method(app, "order", func(_ context.Context, order order) (int, error) {
		fmt.Fprintln(orders, order.Number)
		time.Sleep(time.Duration(order.MS) * time.Millisecond)
		return order.Number, nil
	})

	app.Run()
}
