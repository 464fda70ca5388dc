// Package pprof writes profiles for `go tool pprof`: a gzipped protocol buffer of
// the type Profile (github.com/google/pprof, proto/profile.proto). Only what a flat
// profile needs is here; the library that reads and writes all of it costs every
// start of the program a millisecond.
package pprof

import (
	"compress/gzip"
	"encoding/binary"
	"io"
	"slices"
)

// Fields of the messages, by their numbers in profile.proto.
const (
	profileSampleType  = 1
	profileSample      = 2
	profileLocation    = 4
	profileFunction    = 5
	profileStrings     = 6
	profilePeriodType  = 11
	profilePeriod      = 12
	valueTypeType      = 1
	valueTypeUnit      = 2
	sampleLocation     = 1
	sampleValue        = 2
	locationID         = 1
	locationAddress    = 3
	locationLine       = 4
	lineFunction       = 1
	functionID         = 1
	functionName       = 2
	functionSystemName = 3
)

// Encoder makes one profile. It is for one goroutine.
type Encoder struct {
	to         io.Writer
	out        message
	strings    []string
	indexes    map[string]uint64 // into strings
	functions  map[string]uint64 // their IDs
	locations  uint64            // the last ID
	periodType []byte
}

// NewEncoder begins a profile of which each sample has as many values as types names:
// pairs of a type and its unit.
func NewEncoder(w io.Writer, types ...string) *Encoder {
	e := &Encoder{to: w, indexes: map[string]uint64{}, functions: map[string]uint64{}}
	e.index("") // the format wants it first
	for t := range slices.Chunk(types, 2) {
		var m message
		m.uint(valueTypeType, e.index(t[0]))
		m.uint(valueTypeUnit, e.index(t[1]))
		e.out.bytes(profileSampleType, m)
		e.periodType = m
	}
	return e
}

// Period says how much there is between two samples, in the unit of the last type.
func (e *Encoder) Period(n int64) {
	e.out.bytes(profilePeriodType, e.periodType)
	e.out.uint(profilePeriod, uint64(n))
}

// Sample adds the values of an address, which lies in the function of that name. An
// address is added once.
func (e *Encoder) Sample(addr uint64, function string, values ...int64) {
	id, ok := e.functions[function]
	if !ok {
		id = uint64(len(e.functions) + 1)
		e.functions[function] = id
		var f message
		f.uint(functionID, id)
		f.uint(functionName, e.index(function))
		f.uint(functionSystemName, e.index(function))
		e.out.bytes(profileFunction, f)
	}
	e.locations++
	var line, location, sample message
	line.uint(lineFunction, id)
	location.uint(locationID, e.locations)
	location.uint(locationAddress, addr)
	location.bytes(locationLine, line)
	e.out.bytes(profileLocation, location)
	sample.uint(sampleLocation, e.locations)
	for _, v := range values {
		sample.uint(sampleValue, uint64(v))
	}
	e.out.bytes(profileSample, sample)
}

// Close writes the profile.
func (e *Encoder) Close() error {
	for _, s := range e.strings {
		e.out.bytes(profileStrings, []byte(s))
	}
	z := gzip.NewWriter(e.to)
	if _, err := z.Write(e.out); err != nil {
		return err
	}
	return z.Close()
}

// index is where the profile's table of strings has one.
func (e *Encoder) index(s string) uint64 {
	i, ok := e.indexes[s]
	if !ok {
		i = uint64(len(e.strings))
		e.indexes[s] = i
		e.strings = append(e.strings, s)
	}
	return i
}

// message is one of protocol buffers: fields, each with a tag of its number and how
// it is written (protobuf.dev/programming-guides/encoding).
type message []byte

const (
	wireVarint = 0
	wireBytes  = 2
)

func (m *message) uint(field int, v uint64) {
	*m = binary.AppendUvarint(binary.AppendUvarint(*m, uint64(field<<3|wireVarint)), v)
}

func (m *message) bytes(field int, b []byte) {
	*m = binary.AppendUvarint(binary.AppendUvarint(*m, uint64(field<<3|wireBytes)), uint64(len(b)))
	*m = append(*m, b...)
}
