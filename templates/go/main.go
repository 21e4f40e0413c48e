// The methods of this app. After a new build, `fdpassctl reload` applies it; clients stay connected.
package main

import (
	"context"
	"os"

	"fdpassd"
)

type params struct {
	Name string `json:"name"`
}

func main() {
	app := fdpassd.New()
	greeting := os.Getenv("GREETING")
	if greeting == "" {
		greeting = "Hello"
	}

	// Idempotent: if the process dies in it, the request runs once more. Each call has its own goroutine.
	fdpassd.Method(app, "hello", func(_ context.Context, in params) (string, error) {
		if in.Name == "" {
			return "", fdpassd.Fault("bad_params", "name must not be empty")
		}
		return greeting + ", " + in.Name + "!", nil
	}, fdpassd.Idempotent)

	app.Run()
}
