// SPDX-License-Identifier: Apache-2.0

package main

// server is a backend: some cores that work at a speed, and a queue without
// bound. With the discipline fcfs each core serves one request to its end, in
// order of arrival; with ps all requests share the cores equally.
//
// Time in the server is counted in work done per request in service. A request's
// end is then fixed when its service begins, whatever happens to the speed.
type server struct {
	speed  float64 // work per second and core; 0: frozen
	cores  int
	shared bool // discipline ps
	failed bool // refuses

	clock   float64 // work done for each request in service
	at      float64 // the time to which clock and busy belong
	busy    float64 // core seconds
	serving []job   // a heap, the earliest end first
	waiting ring[waiter]
}

type job struct {
	end float64 // on the server's clock
	req int32
}

type waiter struct {
	work float64
	req  int32
}

// rate returns how fast the clock goes.
func (s *server) rate() float64 {
	if k := len(s.serving); s.shared && k > s.cores {
		return s.speed * float64(s.cores) / float64(k)
	}
	return s.speed
}

// advance moves the server to time t, at which or before which nothing ends.
func (s *server) advance(t float64) {
	dt := t - s.at
	s.clock += s.rate() * dt
	s.busy += float64(min(len(s.serving), s.cores)) * dt
	s.at = t
}

// next returns when the next request ends, if nothing else happens.
func (s *server) next() float64 {
	rate := s.rate()
	if len(s.serving) == 0 || rate == 0 {
		return never
	}
	return s.at + max(0, s.serving[0].end-s.clock)/rate
}

// enter takes a request at time t and says whether its service begins.
func (s *server) enter(t float64, req int32, work float64) bool {
	s.advance(t)
	if s.shared || len(s.serving) < s.cores {
		s.serve(req, work)
		return true
	}
	s.waiting.push(waiter{work, req})
	return false
}

// leave ends the request whose time has come, which is t. It returns that request
// and the one whose service begins instead, or -1.
func (s *server) leave(t float64) (done, begun int32) {
	s.advance(t)
	done = s.serving[0].req
	last := len(s.serving) - 1
	s.sink(s.serving[last], last)
	s.serving = s.serving[:last]
	if s.waiting.size == 0 {
		return done, -1
	}
	w := s.waiting.pop()
	s.serve(w.req, w.work)
	return done, w.req
}

// clear drops all requests at time t and returns them.
func (s *server) clear(t float64) []int32 {
	s.advance(t)
	var dropped []int32
	for _, j := range s.serving {
		dropped = append(dropped, j.req)
	}
	for s.waiting.size > 0 {
		dropped = append(dropped, s.waiting.pop().req)
	}
	s.serving = s.serving[:0]
	return dropped
}

// serve puts a request into the heap.
func (s *server) serve(req int32, work float64) {
	j := job{s.clock + work, req}
	i := len(s.serving)
	s.serving = append(s.serving, j)
	for i > 0 && s.serving[(i-1)/2].end > j.end {
		s.serving[i] = s.serving[(i-1)/2]
		i = (i - 1) / 2
	}
	s.serving[i] = j
}

// sink puts j at the root of a heap of n and lets it down to its place.
func (s *server) sink(j job, n int) {
	i := 0
	for c := 1; c < n; c = 2*i + 1 {
		if c+1 < n && s.serving[c+1].end < s.serving[c].end {
			c++
		}
		if s.serving[c].end >= j.end {
			break
		}
		s.serving[i] = s.serving[c]
		i = c
	}
	s.serving[i] = j
}
