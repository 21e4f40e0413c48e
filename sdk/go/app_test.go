package fdpassd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

type null struct{}

// The programs that the tests start.
var apps = map[string]func(){
	"all":  allApp,
	"bare": bareApp,
	"fails": func() {
		app := New()
		app.Start(func(context.Context) error { app.Unhealthy("not sent"); return nil })
		app.Start(func(context.Context) error {
			length, _ := strconv.Atoi(os.Getenv("LENGTH"))
			return errors.New("no database" + strings.Repeat("x", length) + os.Getenv("MORE"))
		})
		app.Start(func(context.Context) error { logError("not reached"); return nil })
		app.Run()
	},
	"panics": func() {
		app := New()
		app.Start(func(context.Context) error { panic("at the start") })
		app.Run()
	},
	"mistaken": func() {
		app := New(Concurrency(0))
		Method(app, "Wrong", func(context.Context, null) (null, error) { return null{}, nil })
		app.Run()
	},
	"health": func() {
		app := New()
		results := []error{nil, errors.New("no database"), errors.New("slow"), nil}
		app.Health(20*time.Millisecond, func(context.Context) (err error) {
			if len(results) > 0 {
				err, results = results[0], results[1:]
			}
			return err
		})
		app.Start(func(context.Context) error { app.Unhealthy("warming up"); return nil })
		app.Run()
	},
	"many": func() {
		app := New()
		for i := 0; i < 100; i++ {
			Method(app, fmt.Sprintf("method_%d", i), func(context.Context, null) (int, error) { return i, nil })
		}
		app.Run()
	},
}

func bareApp() {
	app := New()
	type pair struct{ A, B int }
	Method(app, "add", func(_ context.Context, in pair) (int, error) { return in.A + in.B, nil })
	app.Run()
}

func allApp() {
	app := New(Concurrency(100), Name("all"), Version("2"))
	orders := app.Counter("orders", "Orders.")
	seconds := app.Histogram("seconds", "Seconds.", 0.1, 1)
	started := 0
	app.Start(func(context.Context) error { started++; orders.Add(2); return nil })
	app.Start(func(context.Context) error { started++; return nil })
	app.Stop(func(context.Context) error {
		time.Sleep(50 * time.Millisecond)
		os.Stderr.WriteString("stopped\n")
		return errors.New("stopping failed")
	})
	app.OnClose(func(client uint64) { fmt.Fprintf(os.Stderr, "client %d has left\n", client) })

	Method(app, "echo", func(_ context.Context, in any) (any, error) { return in, nil }, Idempotent, Reply("echoed"))
	Method(app, "raw", func(_ context.Context, in json.RawMessage) (json.RawMessage, error) { return in, nil })
	Method(app, "integer", func(_ context.Context, in int64) (int64, error) { return in, nil })
	Method(app, "big", func(_ context.Context, in *big.Int) (*big.Int, error) { return in.Add(in, big.NewInt(1)), nil })
	Method(app, "started", func(context.Context, null) (int, error) { return started, nil })
	Method(app, "call", func(ctx context.Context, _ json.RawMessage) (string, error) {
		c := CallOf(ctx)
		unix, isUnix := c.Unix()
		at, hasDeadline := ctx.Deadline()
		isSoon := time.Until(at) > 20*time.Second && time.Until(at) <= 30*time.Second
		return fmt.Sprint(c.Method(), " ", c.Client(), " ", c.Peer(), " ", c.Attempt(), " ", unix, isUnix, hasDeadline, isSoon, " ", string(c.RawParams()), " ", ctx.Err()), nil
	})
	Method(app, "sleep", func(_ context.Context, ms int) (int, error) {
		time.Sleep(time.Duration(ms) * time.Millisecond)
		return ms, nil
	})
	Method(app, "wait", func(ctx context.Context, _ null) (int, error) {
		child, cancel := context.WithCancel(ctx)
		defer cancel()
		<-child.Done()
		<-ctx.Done()
		return 0, fmt.Errorf("waiting: %w", ctx.Err())
	})
	Method(app, "wait_then_look", func(ctx context.Context, ms int) (string, error) {
		time.Sleep(time.Duration(ms) * time.Millisecond)
		return fmt.Sprint(ctx.Err()), nil
	})
	var left context.Context
	var leftEnd <-chan struct{}
	Method(app, "leave", func(ctx context.Context, _ null) (int, error) { left, leftEnd = ctx, ctx.Done(); return 0, nil })
	Method(app, "left", func(context.Context, null) (string, error) { <-leftEnd; return left.Err().Error(), nil })
	Method(app, "fault", func(_ context.Context, in Error) (int, error) {
		return 0, fmt.Errorf("more: %w", Fault(in.Code, in.Message))
	})
	Method(app, "plain_error", func(context.Context, null) (int, error) { _, err := os.Open("/nowhere"); return 0, err })
	Method(app, "panic", func(_ context.Context, what string) (int, error) {
		switch what {
		case "text":
			panic("the secret")
		case "index":
			return []int{}[len(what)], nil
		case "exit":
			runtime.Goexit()
		}
		return 0, nil
	})
	Method(app, "nothing", func(context.Context, json.RawMessage) (any, error) { return nil, nil })
	Method(app, "nan", func(context.Context, null) (float64, error) { return math.NaN(), nil })
	Method(app, "html", func(context.Context, null) (string, error) { return "<&>", nil })
	Method(app, "long", func(_ context.Context, length int) (string, error) { return strings.Repeat("x", length), nil })
	Method(app, "long_fault", func(context.Context, null) (int, error) { return 0, Fault("long", strings.Repeat("é", 10_000_000)) })
	Method(app, "count", func(_ context.Context, by float64) (any, error) {
		if err := orders.Add(by); err != nil {
			return nil, err
		}
		return nil, seconds.Observe(0.25)
	})
	Method(app, "count_later", func(_ context.Context, by float64) (any, error) {
		time.AfterFunc(50*time.Millisecond, func() { orders.Add(by) })
		return nil, nil
	})
	Method(app, "observe_many", func(_ context.Context, count int) (any, error) {
		for i := 0; i < count; i++ {
			seconds.Observe(float64(i))
		}
		return nil, nil
	})
	Method(app, "observe_sevenths", func(_ context.Context, count int) (any, error) {
		for i := 0; i < count; i++ {
			seconds.Observe(float64(i) / 7)
		}
		return nil, nil
	})
	Method(app, "health", func(_ context.Context, reason *string) (any, error) {
		if reason == nil {
			app.Healthy()
		} else {
			app.Unhealthy(*reason)
		}
		return nil, nil
	})
	Method(app, "print", func(_ context.Context, count int) (any, error) {
		for i := 0; i < count; i++ {
			if _, err := fmt.Println(i, strings.Repeat("x", 200)); err != nil {
				return err.Error(), nil
			}
		}
		return nil, nil
	})
	Method(app, "collect", func(context.Context, null) (bool, error) {
		for i := 0; i < 5; i++ {
			runtime.GC()
		}
		f, err := os.Open("/dev/null")
		if err != nil {
			return false, err
		}
		defer f.Close()
		return f.Fd() > 3, nil
	})
	Method(app, "environment", func(context.Context, null) (bool, error) {
		return strings.Contains(strings.Join(os.Environ(), "\n"), "FDPASSD_"), nil
	})
	Method(app, "spawn", func(context.Context, null) (int, error) {
		child := exec.Command("sleep", "60")
		if err := child.Start(); err != nil {
			return 0, err
		}
		go child.Wait()
		return child.Process.Pid, nil
	})
	Method(app, "terminate", func(context.Context, null) (string, error) {
		child := exec.Command("sleep", "60")
		if err := child.Start(); err != nil {
			return "", err
		}
		if err := child.Process.Signal(syscall.SIGTERM); err != nil {
			return "", err
		}
		return child.Wait().Error(), nil
	})
	app.Run()
}

func TestHelloListsMethodsLimitsAndMetrics(t *testing.T) {
	hello := startApp(t, "all", options{}).hello()
	equal(t, hello.Concurrency, 100)
	equal(t, hello.Name+hello.Version, "all2")
	equal(t, hello.Closes, true)
	equal(t, fmt.Sprint(hello.Methods[0]), "map[idempotent:true name:echo reply:echoed]")
	equal(t, fmt.Sprint(hello.Methods[1]), "map[idempotent:false name:raw]")
	equal(t, string(hello.Metrics), `[{"name":"orders","type":"counter","help":"Orders."},{"name":"seconds","type":"histogram","help":"Seconds.","buckets":[0.1,1]}]`)
}

func TestDefaults(t *testing.T) {
	w := startApp(t, "bare", options{})
	equal(t, w.hello().text, `{"hello":1,"methods":[{"name":"add","idempotent":false}],"concurrency":64,"closes":false}`)
	equal(t, w.result("add", `{"a":1,"b":2}`), "3")
	equal(t, w.result("add", ""), "0")
	w.end()
}

func TestStartRunsBeforeHelloInOrder(t *testing.T) {
	w := serving(t, "all", options{})
	equal(t, w.result("started", ""), "2")
}

func TestAnswersHaveTheFormThatTheWorkerParsesFastest(t *testing.T) {
	w := serving(t, "all", options{})
	equal(t, w.call("echo", `[1, {"a":null}, "é"]`).text, `{"id":1,"result":[1,{"a":null},"é"]}`)
	equal(t, w.call("nothing", "").text, `{"id":2,"result":null}`)
	equal(t, w.call("html", "").text, `{"id":3,"result":"<&>"}`)
	equal(t, w.call("raw", "").text, `{"id":4,"result":null}`)
}

func TestRawParamsAndResultsAreExact(t *testing.T) {
	w := serving(t, "all", options{})
	exact := `{"n" : 18446744073709551617, "params":[1e400, "a\"b,\"params\":1"] }`
	equal(t, w.result("raw", exact), exact)
	for _, params := range []string{"0", `"x"`, "[]", "{}", "true", "null", `"}"`} {
		equal(t, w.result("raw", params), params)
	}
	w.send(`{ "id" : 900 , "more":{"params":"no","a":["]"]},"in":"raw" , "client":1, "params" : 12345678901234567890 }`)
	equal(t, string(w.answer(900).Result), "12345678901234567890")
	equal(t, w.result("integer", "9223372036854775807"), "9223372036854775807")
	equal(t, w.result("big", "18446744073709551616"), "18446744073709551617")
	// As encoding/json documents, a number in an interface is a float64.
	equal(t, w.result("echo", "9007199254740993"), "9007199254740992")
}

func TestParamsThatDoNotFitAreBadParams(t *testing.T) {
	w := serving(t, "all", options{})
	equal(t, w.fault("integer", `"x"`), "bad_params: cannot unmarshal string into Go value of type int64")
	equal(t, w.fault("integer", "9223372036854775808"), "bad_params: cannot unmarshal number 9223372036854775808 into Go value of type int64")
	equal(t, w.log(), "")
}

func TestParamsThatAreNestedDeeplyAreBadParams(t *testing.T) {
	w := serving(t, "all", options{})
	for _, depth := range []int{20000, 100000} {
		params := strings.Repeat("[", depth) + strings.Repeat("]", depth)
		equal(t, w.fault("echo", params)[:10], "bad_params")
	}
	equal(t, w.result("echo", "1"), "1")
}

func TestResultThatIsNotJSONIsInternal(t *testing.T) {
	w := serving(t, "all", options{})
	equal(t, w.fault("nan", ""), "internal: the result cannot be represented as JSON")
	w.logged("<3>method nan: the result cannot be represented as JSON: json: unsupported value: NaN")
	equal(t, w.result("echo", "1"), "1")
}

func TestResultLongerThanAFrameIsInternal(t *testing.T) {
	w := serving(t, "all", options{env: []string{"FDPASSD_MAX_FRAME=200000"}})
	fits := 200000 - len(`{"id":1,"result":""}`)
	equal(t, len(w.result("long", strconv.Itoa(fits))), fits+2)
	equal(t, w.fault("long", strconv.Itoa(fits+1)), "internal: the result is too long")
	equal(t, w.fault("long", "10000000"), "internal: the result is too long")
	equal(t, len(w.fault("long_fault", "")), len("long: ")+1000+len("…"))
}

func TestFaultIsTheErrorOfTheClient(t *testing.T) {
	w := serving(t, "all", options{})
	equal(t, w.fault("fault", `{"code":"no_such_item","message":"no \"tea\""}`), `no_such_item: no "tea"`)
	for _, code := range []string{"bad_params", "internal", "crashed"} {
		equal(t, w.fault("fault", `{"code":"`+code+`"}`), code+": ")
	}
	equal(t, w.log(), "")
	equal(t, w.fault("fault", `{"code":"timeout"}`), `internal: the code "timeout" is reserved for the daemon`)
	equal(t, w.fault("fault", `{"code":"Upper"}`), `internal: "Upper" is not a valid code: [a-z][a-z0-9_]{0,63}`)
	w.logged("<3>method fault: .*timeout")
}

func TestErrorWithATextLongerThanAFrameIsAnsweredWithoutIt(t *testing.T) {
	w := serving(t, "all", options{env: []string{"FDPASSD_MAX_FRAME=4160"}})
	control := strings.Repeat(`\u0001`, 1000)
	equal(t, w.fault("fault", `{"code":"out_of_tea","message":"`+control+`"}`), "out_of_tea: ")
	w.result("health", `"`+control+`"`)
	equal(t, string(w.next("health", func(f *frame) bool { return f.Health != nil }).Health), `"unhealthy"`)
}

func TestOtherErrorIsCrashedWithItsType(t *testing.T) {
	w := serving(t, "all", options{})
	equal(t, w.fault("plain_error", ""), "crashed: fs.PathError")
	w.logged("(?m)^<3>method plain_error: fs.PathError: open /nowhere: no such file or directory$")
	equal(t, w.result("echo", "1"), "1")
}

func TestPanicAnswersAllCallsThenEndsTheApp(t *testing.T) {
	for what, name := range map[string]string{"text": "string", "index": "runtime.boundsError", "exit": "runtime.Goexit"} {
		w := serving(t, "all", options{})
		slow, slowBody := w.body("sleep", "300")
		waiting, waitingBody := w.body("wait", "")
		w.send(slowBody, waitingBody)
		equal(t, w.fault("panic", strconv.Quote(what)), "crashed: "+name)
		equal(t, w.nextHealth(), `"a method has panicked"`)
		lost, lostBody := w.body("echo", "1")
		w.send(lostBody, `{"probe":5}`, fmt.Sprintf(`{"cancel":%d,"why":"gone"}`, waiting))
		equal(t, w.answer(waiting).Error.Code, "crashed")
		equal(t, string(w.answer(slow).Result), "300")
		equal(t, w.exit(), 2)
		for _, text := range w.frames {
			if strings.Contains(text, fmt.Sprintf(`"id":%d`, lost)) || strings.Contains(text, "alive") {
				t.Fatalf("%s after the panic", text)
			}
		}
		w.logged("<3>method panic: panic: ")
		w.logged(`<3>    .*app_test\.go`)
	}
}

func TestEndOfTheDescriptorEndsADyingApp(t *testing.T) {
	w := serving(t, "all", options{})
	_, body := w.body("sleep", "60000")
	w.send(body)
	w.fault("panic", `"text"`)
	w.socket.Close()
	equal(t, w.exit(), 2)
}

func TestUnknownMethodIsInternal(t *testing.T) {
	w := serving(t, "all", options{})
	equal(t, w.fault("unknown", ""), `internal: unknown method "unknown"`)
}

func TestMethodLearnsAboutItsCall(t *testing.T) {
	w := serving(t, "all", options{})
	equal(t, w.result("call", "[1]"), `"call 4711 10.0.0.9:4242 1 {0 0 0} false true true [1] <nil>"`)
	w.send(`{"id":900,"in":"call","client":1,"peer":"","pid":7,"uid":1000,"gid":100,"attempt":2}`)
	equal(t, string(w.answer(900).Result), `"call 1  2 {7 1000 100} true false false  <nil>"`)
	outside := CallOf(context.Background())
	equal(t, outside.Attempt(), 1)
	equal(t, outside.Method()+outside.Peer(), "")
}

func TestCancelEndsTheContextAndTheCallIsAnswered(t *testing.T) {
	w := serving(t, "all", options{})
	gone, goneBody := w.body("wait", "")
	late, lateBody := w.body("wait", "")
	w.send(goneBody, lateBody, `{"cancel":999,"why":"gone"}`)
	w.send(fmt.Sprintf(`{"cancel":%d,"why":"gone"}`, gone), fmt.Sprintf(`{"cancel":%d,"why":"timeout"}`, gone))
	equal(t, w.answer(gone).Error.Code, "crashed")
	w.send(fmt.Sprintf(`{"cancel":%d,"why":"timeout"}`, late))
	equal(t, w.answer(late).Error.Code, "crashed")
	// A method that stops because of its context has no bug.
	equal(t, w.log(), "")
	for why, want := range map[string]string{"gone": "context canceled", "timeout": "context deadline exceeded"} {
		look, body := w.body("wait_then_look", "100")
		w.send(body, fmt.Sprintf(`{"cancel":%d,"why":%q}`, look, why))
		equal(t, string(w.answer(look).Result), strconv.Quote(want))
	}
	w.result("leave", "")
	equal(t, w.result("left", ""), `"context canceled"`)
	// The deadline ends the context without a cancel, too.
	w.send(`{"id":900,"in":"wait","client":1,"timeout":20}`, `{"id":901,"in":"wait_then_look","client":1,"timeout":20,"params":60}`)
	equal(t, w.answer(900).Error.Code, "crashed")
	equal(t, string(w.answer(901).Result), `"context deadline exceeded"`)
}

func TestRequestsRunConcurrently(t *testing.T) {
	w := serving(t, "all", options{})
	slow, slowBody := w.body("sleep", "300")
	fast, fastBody := w.body("sleep", "1")
	w.send(slowBody, fastBody)
	any := func(f *frame) bool { return f.ID > 0 }
	equal(t, w.next("answer", any).ID, fast)
	equal(t, w.next("answer", any).ID, slow)
}

func TestAnswersAreWrittenTogether(t *testing.T) {
	w := serving(t, "all", options{env: []string{"GOMAXPROCS=1"}})
	w.result("echo", "1")
	before := w.reads
	var ids []uint64
	var bodies []string
	for i := 0; i < 50; i++ {
		id, body := w.body("echo", strconv.Itoa(i))
		ids, bodies = append(ids, id), append(bodies, body)
	}
	w.send(bodies...)
	for i, id := range ids {
		equal(t, string(w.answer(id).Result), strconv.Itoa(i))
	}
	// One, unless the scheduler interrupts a goroutine.
	if reads := w.reads - before; reads > 5 {
		t.Fatalf("%d writes", reads)
	}
}

func TestFramesMayArriveInPieces(t *testing.T) {
	w := serving(t, "all", options{})
	one, oneBody := w.body("echo", `"é"`)
	two, twoBody := w.body("echo", "2")
	for _, b := range append(frameOf(oneBody), frameOf(twoBody)...) {
		_, err := w.socket.Write([]byte{b})
		must(t, err)
	}
	equal(t, string(w.answer(one).Result), `"é"`)
	equal(t, string(w.answer(two).Result), "2")
}

func TestLongFramesMayHaveOthersBehindThem(t *testing.T) {
	w := serving(t, "all", options{})
	var ids []uint64
	var bodies []string
	for i := 0; i < 40; i++ {
		params := strconv.Itoa(i)
		if i%2 == 0 {
			params = strconv.Quote(strings.Repeat("€", 100_000) + params)
		}
		id, body := w.body("echo", params)
		ids, bodies = append(ids, id), append(bodies, body)
	}
	w.send(bodies...)
	for i, id := range ids {
		want := strconv.Itoa(i)
		if i%2 == 0 {
			want = `"` + strings.Repeat("€", 100_000) + want + `"`
		}
		equal(t, string(w.answer(id).Result), want)
	}
	w.end()
}

func TestProbeAndUnknownFrames(t *testing.T) {
	w := serving(t, "all", options{})
	w.send(`{"later":1}`, `{}`, `{"probe":17, "more":[{"a":"}"}], "last":-1.5}`)
	equal(t, w.next("alive", func(f *frame) bool { return f.Alive > 0 }).Alive, 17)
}

func TestFrameThatIsNotJSONEndsTheApp(t *testing.T) {
	w := serving(t, "all", options{})
	w.send(`{"id":`)
	equal(t, w.exit(), 76)
}

func TestClosedFramesCallOnClose(t *testing.T) {
	w := serving(t, "all", options{})
	w.send(`{"closed":4711}`)
	w.logged("client 4711 has left")
}

func metrics(f *frame) bool { return f.Hello == 0 && f.Metrics != nil }

func TestMetrics(t *testing.T) {
	w := serving(t, "all", options{})
	equal(t, string(w.next("metrics", metrics).Metrics), `{"orders":2}`)
	w.result("count", "4")
	equal(t, string(w.next("metrics", metrics).Metrics), `{"orders":4,"seconds":[0.25]}`)
	// Changes outside of calls are sent soon.
	w.result("count_later", "3")
	equal(t, string(w.next("metrics", metrics).Metrics), `{"orders":3}`)
	w = serving(t, "all", options{env: []string{"FDPASSD_MAX_FRAME=20000"}})
	w.next("metrics", metrics)
	w.result("observe_many", "10000")
	sum := 0.0
	for count := 0; count < 10000; {
		var seconds struct{ Seconds []float64 }
		must(t, json.Unmarshal(w.next("metrics", metrics).Metrics, &seconds))
		count += len(seconds.Seconds)
		for _, value := range seconds.Seconds {
			sum += value
		}
	}
	equal(t, sum, 9999*10000/2)
}

func TestCounterGetsAtMostWhatTheDaemonCounts(t *testing.T) {
	app := New()
	orders := app.Counter("orders", "")
	must(t, orders.Add(maxCount))
	must(t, orders.Add(maxCount))
	app.takeMetrics()
	equal(t, string(app.out[4:]), `{"metrics":{"orders":9007199254740992}}`)
}

func TestMetricsRefuseWhatTheyCannotCount(t *testing.T) {
	w := serving(t, "all", options{})
	w.next("metrics", metrics)
	for _, wrong := range []string{"-1", "0.5", "9007199254740994", "1e308"} {
		equal(t, w.fault("count", wrong), "crashed: errors.errorString")
	}
	// The value comes from a client, so the app continues.
	w.result("count", "4")
	equal(t, string(w.next("metrics", metrics).Metrics), `{"orders":4,"seconds":[0.25]}`)
	app := New()
	if app.Histogram("seconds", "Seconds.").Observe(math.NaN()) == nil {
		t.Fatal("NaN is observed")
	}
}

func TestMetricsLongerThanAFrameAreSplit(t *testing.T) {
	w := serving(t, "all", options{env: []string{"FDPASSD_MAX_FRAME=2500"}})
	w.next("metrics", metrics)
	w.result("observe_sevenths", "1000")
	for count := 0; count < 1000; {
		f := w.next("metrics", metrics)
		var seconds struct{ Seconds []float64 }
		must(t, json.Unmarshal(f.Metrics, &seconds))
		for _, value := range seconds.Seconds {
			equal(t, value, float64(count)/7)
			count++
		}
		if len(f.text) > 2500 {
			t.Fatalf("%d bytes", len(f.text))
		}
	}
}

func (w *testWorker) nextHealth() string {
	w.t.Helper()
	return string(w.next("health", func(f *frame) bool { return f.Health != nil }).Health)
}

func TestHealthIsReportedWhenItChanges(t *testing.T) {
	w := serving(t, "all", options{})
	for _, reason := range []string{"null", `"no database"`, `"no database"`, "null"} {
		w.result("health", reason)
	}
	equal(t, w.nextHealth(), `"no database"`)
	equal(t, w.nextHealth(), "null")
	w = serving(t, "health", options{})
	for _, want := range []string{`"warming up"`, "null", `"no database"`, `"slow"`, "null"} {
		equal(t, w.nextHealth(), want)
	}
}

func TestAppThatCannotStartReportsWhy(t *testing.T) {
	failed := func(f *frame) bool { return f.Failed != nil }
	w := startApp(t, "fails", options{})
	equal(t, w.next("failed", failed).text, `{"failed":"errors.errorString: no database"}`)
	equal(t, w.exit(), 1)
	w.logged("<3>the app cannot start: errors.errorString: no database")
	equal(t, strings.Contains(w.log(), "not reached"), false)

	w = startApp(t, "fails", options{env: []string{"LENGTH=1000000"}})
	equal(t, len(*w.next("failed", failed).Failed), 1000+len("…"))
	equal(t, w.exit(), 1)

	more := "MORE=" + strings.Repeat("\x01", 800)
	w = startApp(t, "fails", options{env: []string{more, "FDPASSD_MAX_FRAME=4000"}})
	equal(t, *w.next("failed", failed).Failed, "the app cannot start; its log has the reason")
	equal(t, w.exit(), 1)
	w.logged("<3>the app cannot start: errors.errorString: no database")

	w = startApp(t, "panics", options{})
	equal(t, *w.next("failed", failed).Failed, "fdpassd.panicError: at the start")
	equal(t, w.exit(), 1)
	w.logged("<3>.*app_test.go")

	w = startApp(t, "mistaken", options{})
	equal(t, *w.next("failed", failed).Failed, "the concurrency must be from 1 to 4096, not 0")
	equal(t, w.exit(), 1)

	w = startApp(t, "bare", options{env: []string{"FDPASSD_PRELOAD=1"}})
	equal(t, *w.next("failed", failed).Failed, "Go cannot fork its runtime: remove app.preload")
	equal(t, w.exit(), 1)

	w = startApp(t, "many", options{env: []string{"FDPASSD_MAX_FRAME=1000"}})
	equal(t, *w.next("failed", failed).Failed, "the list of methods is longer than a frame may be")
	equal(t, w.exit(), 1)
}

func TestStopWaitsForAnswers(t *testing.T) {
	w := serving(t, "all", options{})
	id, body := w.body("sleep", "200")
	w.send(body, `{"stop":30000}`)
	equal(t, string(w.answer(id).Result), "200")
	equal(t, w.exit(), 0)
	w.logged("stopped\n<3>a function of Stop failed: stopping failed")

	idle := serving(t, "bare", options{})
	idle.send(`{"stop":30000}`)
	equal(t, idle.exit(), 0)
}

func TestEndOfTheDescriptorEndsTheApp(t *testing.T) {
	w := serving(t, "all", options{})
	_, body := w.body("sleep", "60000")
	w.send(body)
	w.result("echo", "1")
	w.end()
	w.logged("stopped")
}

func TestEndDoesNotWaitForAWorkerThatDoesNotRead(t *testing.T) {
	w := startApp(t, "bare", options{unread: true})
	for i := 0; i < 10000; i++ {
		_, body := w.body("add", `{"a":1,"b":2}`)
		w.send(body)
	}
	raw, err := w.socket.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) { must(t, syscall.Shutdown(int(fd), syscall.SHUT_WR)) }))
	equal(t, w.exit(), 0)
}

func TestRunByHand(t *testing.T) {
	run := func(name string, env ...string) (string, int) {
		cmd := exec.Command(os.Args[0], "an arg")
		cmd.Env = append(append(os.Environ(), "TEST_APP="+name), env...)
		output, _ := cmd.CombinedOutput()
		return string(output), cmd.ProcessState.ExitCode()
	}
	output, status := run("bare")
	equal(t, output, "start this app with: fdpassd app -- "+os.Args[0]+" 'an arg'\n")
	equal(t, status, 64)
	output, status = run("mistaken")
	equal(t, strings.HasPrefix(output, "the concurrency must be from 1 to 4096, not 0\n\"Wrong\" is not a valid method name"), true)
	equal(t, status, 64)
	output, status = run("bare", "FDPASSD_APP=9")
	equal(t, output, "descriptor 9, which FDPASSD_APP names, is not a socket\n")
	equal(t, status, 64)
}

// The runtime's handling of signals, descriptors and pipes.

func TestSignalsDoNotEndTheApp(t *testing.T) {
	w := serving(t, "all", options{})
	for _, signal := range []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGTERM} {
		must(t, w.cmd.Process.Signal(signal))
	}
	equal(t, w.result("sleep", "50"), "50")
	// Programs that the app starts get the usual signals.
	status, err := os.ReadFile("/proc/" + w.spawn() + "/status")
	must(t, err)
	ignored, err := strconv.ParseUint(regexp.MustCompile(`SigIgn:\s*(\w+)`).FindStringSubmatch(string(status))[1], 16, 64)
	must(t, err)
	equal(t, ignored&0x5003, 0)
	equal(t, w.result("terminate", ""), `"signal: terminated"`)
	w.end()
}

// Has the app start a program, and returns its pid.
func (w *testWorker) spawn() string {
	w.t.Helper()
	pid, err := strconv.Atoi(w.result("spawn", ""))
	must(w.t, err)
	w.t.Cleanup(func() { syscall.Kill(pid, syscall.SIGKILL) })
	return strconv.Itoa(pid)
}

func TestProgramThatTheAppStartsDoesNotGetTheDescriptor(t *testing.T) {
	w := serving(t, "all", options{})
	pid := w.spawn()
	_, err := os.Lstat("/proc/" + pid + "/fd/2")
	must(t, err)
	// The program may have opened a file with this number.
	if file, err := os.Readlink("/proc/" + pid + "/fd/3"); err == nil && strings.HasPrefix(file, "socket:") {
		t.Fatal("descriptor 3 is open")
	}
	equal(t, w.result("environment", ""), "false")
	// So the end of the app is the end of the connection, although the program continues.
	must(t, w.cmd.Process.Kill())
	w.wait("end", func() bool { return w.isEnd })
}

func TestCollectorDoesNotCloseTheDescriptor(t *testing.T) {
	w := serving(t, "all", options{})
	equal(t, w.result("collect", ""), "true")
	equal(t, w.result("collect", ""), "true")
}

func TestWaitingNeedsNoThreads(t *testing.T) {
	for name, prepare := range map[string]func(int){
		"blocking":     func(fd int) { must(t, syscall.SetNonblock(fd, false)) },
		"non-blocking": func(fd int) { must(t, syscall.SetNonblock(fd, true)) },
	} {
		w := serving(t, "all", options{prepare: prepare})
		for i := 0; i < 99; i++ {
			_, body := w.body("wait", "")
			w.send(body)
		}
		w.result("echo", "1")
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", w.cmd.Process.Pid))
		must(t, err)
		if len(threads) > 12 {
			t.Fatalf("%s: %d threads", name, len(threads))
		}
		w.end()
	}
}

func TestMoreAnswersThanTheSocketTakes(t *testing.T) {
	w := startApp(t, "all", options{unread: true, env: []string{"FDPASSD_MAX_FRAME=100000000"}})
	var ids []uint64
	var bodies []string
	for i := 0; i < 20; i++ {
		for _, length := range []string{"300000", "1"} {
			id, body := w.body("long", length)
			ids, bodies = append(ids, id), append(bodies, body)
		}
	}
	w.send(bodies...)
	w.send(`{"stop":30000}`)
	go w.read()
	for i, id := range ids {
		want := 3
		if i%2 == 0 {
			want = 300002
		}
		equal(t, len(w.answer(id).Result), want)
	}
	equal(t, w.exit(), 0)
}

func TestAnswerArrivesAlthoughTheWorkerHasEndedItsSide(t *testing.T) {
	w := startApp(t, "bare", options{unread: true})
	id, body := w.body("add", `{"a":1,"b":2}`)
	w.send(body)
	go w.read()
	w.hello()
	equal(t, string(w.answer(id).Result), "3")
	raw, err := w.socket.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) { must(t, syscall.Shutdown(int(fd), syscall.SHUT_WR)) }))
	equal(t, w.exit(), 0)
}

func TestLogThatIsNotReadBlocksOnlyItsCall(t *testing.T) {
	reader, writer, err := os.Pipe()
	must(t, err)
	defer reader.Close()
	w := serving(t, "all", options{stderr: writer})
	writer.Close()
	id, body := w.body("print", "5000")
	w.send(body)
	for i := 0; i < 100; i++ {
		equal(t, w.result("echo", "1"), "1")
	}
	go func() {
		buffer := make([]byte, 65536)
		for {
			if _, err := reader.Read(buffer); err != nil {
				return
			}
		}
	}()
	equal(t, string(w.answer(id).Result), "null")
	w.end()
}

func TestLogWhoseReaderIsGoneDoesNotEndTheApp(t *testing.T) {
	reader, writer, err := os.Pipe()
	must(t, err)
	w := serving(t, "all", options{stderr: writer})
	writer.Close()
	reader.Close()
	equal(t, w.result("print", "10"), `"write /dev/stdout: broken pipe"`)
	equal(t, w.fault("plain_error", ""), "crashed: fs.PathError")
	equal(t, w.result("echo", "1"), "1")
	w.end()
}

// Compiles a program of the module, and returns its path.
func compile(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "app")
	output, err := exec.Command("go", "build", "-o", path, "./"+name).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	return path
}

func TestExample(t *testing.T) {
	w := serving(t, "", options{command: []string{compile(t, "examples/shop")}})
	equal(t, w.result("price", `{"item":"tea","count":2}`), "9")
	equal(t, w.fault("price", `{"item":"gold"}`), "no_such_item: there is no gold")
	equal(t, w.fault("price", `{"item":"tea","count":0}`)[:10], "bad_params")
	equal(t, w.fault("price", "")[:10], "bad_params")
	equal(t, w.result("order", `{"item":"milk"}`), `{"item":"milk","price":1.2}`)
	equal(t, string(w.next("metrics", metrics).Metrics), `{"orders":1}`)
	w.logged("client 4711 orders milk")
	w.end()
}

func TestConformanceApp(t *testing.T) {
	w := serving(t, "", options{command: []string{compile(t, "conformance")}})
	equal(t, w.result("check_echo", "[18446744073709551617]"), "[18446744073709551617]")
	equal(t, w.result("check_sleep", "5"), "5")
	equal(t, w.fault("check_fault", ""), "check_failed: a fault on purpose")
	equal(t, w.fault("check_fault", `{"code":"no_such_item","message":"no \"tea\""}`), `no_such_item: no "tea"`)
	equal(t, w.result("check_null", ""), "null")
	equal(t, w.result("check_print", `"a line"`), "null")
	equal(t, strings.Contains(w.result("check_spawn", ""), `"open":false`), true)
	w.logged("<4>a line on standard error")
	equal(t, w.fault("check_crash", ""), "crashed: string")
	equal(t, w.exit(), 2)
}
