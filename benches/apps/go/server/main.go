// A server in Go with a goroutine for each connection: server PORT.
package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"io"
	"log"
	"net"
	"os"
	"runtime"
)

type request struct {
	In     string `json:"in"`
	Params any    `json:"params"`
}

type reply struct {
	Out    string `json:"out"`
	Result any    `json:"result"`
}

func serve(connection net.Conn) {
	defer connection.Close()
	in := bufio.NewReaderSize(connection, 16384)
	out := bufio.NewWriterSize(connection, 16384)
	var prefix [4]byte
	var body []byte
	for {
		if _, err := io.ReadFull(in, prefix[:]); err != nil {
			return
		}
		length := int(binary.LittleEndian.Uint32(prefix[:]))
		if length > 16<<20 {
			return
		}
		if cap(body) < length {
			body = make([]byte, length)
		}
		body = body[:length]
		if _, err := io.ReadFull(in, body); err != nil {
			return
		}
		var q request
		if json.Unmarshal(body, &q) != nil || q.In != "echo" {
			return
		}
		answer, err := json.Marshal(reply{"pong", q.Params})
		if err != nil {
			return
		}
		binary.LittleEndian.PutUint32(prefix[:], uint32(len(answer)))
		out.Write(prefix[:])
		out.Write(answer)
		// Replies to requests that arrived together are sent together.
		if in.Buffered() == 0 && out.Flush() != nil {
			return
		}
	}
}

func main() {
	runtime.GOMAXPROCS(1)
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	for {
		if connection, err := listener.Accept(); err == nil {
			go serve(connection)
		}
	}
}
