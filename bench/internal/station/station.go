// SPDX-License-Identifier: Apache-2.0

// Package station is a backend with a queue, as the simulator has it and as the lab's servers
// follow it in real time.
package station

import "math"

// Never is when nothing is due.
var Never = math.Inf(1)

// Server is a backend: some cores that work at a speed, and a queue without
// bound. With the discipline fcfs each core serves one request to its end, in
// order of arrival; with ps all requests share the cores equally.
//
// Time in the server is counted in work done per request in service. A request's
// end is then fixed when its service begins, whatever happens to the speed.
type Server struct {
	Speed  float64 // work per second and core; 0: frozen
	Cores  int
	Shared bool // discipline ps
	Failed bool // refuses

	clock   float64 // work done for each request in service
	at      float64 // the time to which clock and busy belong
	Busy    float64 // core seconds
	serving []job   // a heap, the earliest end first
	waiting Ring[waiter]
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
func (s *Server) rate() float64 {
	if k := len(s.serving); s.Shared && k > s.Cores {
		return s.Speed * float64(s.Cores) / float64(k)
	}
	return s.Speed
}

// Advance moves the server to time t, at which or before which nothing ends.
func (s *Server) Advance(t float64) {
	dt := t - s.at
	s.clock += s.rate() * dt
	s.Busy += float64(min(len(s.serving), s.Cores)) * dt
	s.at = t
}

// Next returns when the next request ends, if nothing else happens.
func (s *Server) Next() float64 {
	rate := s.rate()
	if len(s.serving) == 0 || rate == 0 {
		return Never
	}
	return s.at + max(0, s.serving[0].end-s.clock)/rate
}

// Enter takes a request at time t and says whether its service begins.
func (s *Server) Enter(t float64, req int32, work float64) bool {
	s.Advance(t)
	if s.Shared || len(s.serving) < s.Cores {
		s.serve(req, work)
		return true
	}
	s.waiting.Push(waiter{work, req})
	return false
}

// Leave ends the request whose time has come, which is t. It returns that request
// and the one whose service begins instead, or -1.
func (s *Server) Leave(t float64) (done, begun int32) {
	s.Advance(t)
	done = s.serving[0].req
	last := len(s.serving) - 1
	s.sink(s.serving[last], last)
	s.serving = s.serving[:last]
	if s.waiting.Len() == 0 {
		return done, -1
	}
	w := s.waiting.Pop()
	s.serve(w.req, w.work)
	return done, w.req
}

// Clear drops all requests at time t and returns them.
func (s *Server) Clear(t float64) []int32 {
	s.Advance(t)
	var dropped []int32
	for _, j := range s.serving {
		dropped = append(dropped, j.req)
	}
	for s.waiting.Len() > 0 {
		dropped = append(dropped, s.waiting.Pop().req)
	}
	s.serving = s.serving[:0]
	return dropped
}

// serve puts a request into the heap.
func (s *Server) serve(req int32, work float64) {
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
func (s *Server) sink(j job, n int) {
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

// Capacity is the work that it does per second.
func (s *Server) Capacity() float64 { return s.Speed * float64(s.Cores) }
