// Answers a request of the load over HTTP.

function answer(r) {
    const request = JSON.parse(r.requestText);
    r.return(200, JSON.stringify({ out: "pong", result: request.params }));
}

export default { answer };
