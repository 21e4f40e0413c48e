// A shop: prices that take a while to look up, and orders.
//
//	go build ./examples/shop && fdpassd app -- ./shop
package main

import (
	"context"
	"log"
	"time"

	"fdpassd"
)

type item struct {
	Item  string `json:"item"`
	Count *int   `json:"count"`
}

type order struct {
	Item  string  `json:"item"`
	Price float64 `json:"price"`
}

func main() {
	app := fdpassd.New(fdpassd.Name("shop"), fdpassd.Version("1.0"))
	orders := app.Counter("orders", "Orders that were accepted.")
	prices := map[string]float64{}

	// Runs before the first request.
	app.Start(func(context.Context) error {
		prices["tea"], prices["milk"] = 4.5, 1.2
		return nil
	})

	// A stand-in for a database. The context ends the wait when the client has left.
	priceOf := func(ctx context.Context, item string) (float64, error) {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		price, isThere := prices[item]
		if !isThere {
			return 0, fdpassd.Faultf("no_such_item", "there is no %s", item)
		}
		return price, nil
	}

	fdpassd.Method(app, "price", func(ctx context.Context, in item) (float64, error) {
		count := 1
		if in.Count != nil {
			count = *in.Count
		}
		if in.Item == "" || count < 1 {
			return 0, fdpassd.Fault("bad_params", "item is required, and count must be at least 1")
		}
		price, err := priceOf(ctx, in.Item)
		return price * float64(count), err
	}, fdpassd.Idempotent)

	// Not idempotent: if the process dies in it, the client gets crashed and decides whether to order again.
	fdpassd.Method(app, "order", func(ctx context.Context, in item) (order, error) {
		price, err := priceOf(ctx, in.Item)
		if err != nil {
			return order{}, err
		}
		orders.Inc()
		log.Printf("client %d orders %s", fdpassd.CallOf(ctx).Client(), in.Item)
		return order{in.Item, price}, nil
	})

	app.Run()
}
