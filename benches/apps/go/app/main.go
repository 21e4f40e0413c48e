// An app of fdpassd in Go.
package main

import (
	"context"

	"fdpassd"
)

func main() {
	app := fdpassd.New(fdpassd.Concurrency(64))
	fdpassd.Method(app, "echo", func(_ context.Context, params any) (any, error) {
		return params, nil
	}, fdpassd.Reply("pong"))
	app.Run()
}
