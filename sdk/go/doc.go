// Package fdpassd serves methods of the fdpassd daemon, which keeps the connections of their clients: a crash, a reload
// or a leak of the program costs no client its connection.
//
//	func main() {
//		app := fdpassd.New()
//		fdpassd.Method(app, "price", func(ctx context.Context, in Order) (float64, error) {
//			if in.Count < 1 {
//				return 0, fdpassd.Fault("bad_params", "count must be at least 1")
//			}
//			return db.Price(ctx, in.Item)
//		}, fdpassd.Idempotent)
//		app.Run()
//	}
//
// The daemon starts the program: fdpassd app -- ./shop. The protocol between them is fdpassd-app(7).
//
// In a process that the daemon has started, the initialization of the package makes the descriptor of the protocol
// close-on-exec and ignores SIGTERM, SIGINT and SIGHUP: the process ends when the worker closes that descriptor.
package fdpassd
