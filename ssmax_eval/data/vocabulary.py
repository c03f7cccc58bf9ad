"""Word lists: the cities and word values that needles use, and the words of the generated prose. No word is in both."""

CITIES = """Tokyo Paris London Madrid Rome Berlin Vienna Prague Warsaw Athens Lisbon Dublin Oslo Stockholm Helsinki
Copenhagen Amsterdam Brussels Budapest Bucharest Sofia Belgrade Zagreb Kyiv Riga Vilnius Tallinn Istanbul Ankara Cairo
Tunis Algiers Casablanca Lagos Accra Dakar Nairobi Kampala Lusaka Harare Luanda Durban Tehran Baghdad Amman Beirut
Damascus Riyadh Doha Dubai Muscat Karachi Lahore Kabul Delhi Mumbai Chennai Kolkata Dhaka Colombo Kathmandu Yangon
Bangkok Hanoi Manila Jakarta Singapore Taipei Seoul Osaka Kyoto Beijing Shanghai Sydney Melbourne Perth Brisbane
Auckland Honolulu Vancouver Toronto Montreal Ottawa Chicago Boston Denver Dallas Houston Phoenix Seattle Atlanta Miami
Havana Kingston Caracas Bogota Quito Lima Santiago Montevideo Brasilia Salvador Recife""".split()

# never in our training facts, so that a found one was read and not remembered
HELD_OUT_CITIES = CITIES[3::4]

# what cities choose, in task choice
CHOICES = "gold water peace law life land rest heaven".split()

VALUE_ADJECTIVES = """amber azure bitter bright brisk broad calm clever coral cosmic crimson curious daring dusty eager
electric fancy fierce frozen gentle giant glossy golden hollow humble icy ivory jolly keen lively lucky lunar mellow
mighty misty modest noble olive placid polite proud purple rapid rustic sandy scarlet secret shiny silent silver sleepy
smooth solar spicy sturdy subtle sunny swift tidy timid tiny velvet vivid wild witty""".split()

VALUE_NOUNS = """acorn anchor anvil badger bamboo beacon beetle biscuit bison bugle butter cactus camel candle canyon
cedar cello cherry cobra comet condor cricket dolphin dragon eagle ember falcon fiddle galaxy gecko ginger glacier hammer
hazel heron jaguar jasmine kettle lagoon lemon lizard lobster magnet mango maple marble meadow meteor monkey nectar
nugget orchid otter oyster panther parrot pebble pepper pigeon planet pumpkin quartz rabbit raven rocket saddle salmon
tiger tulip turtle violet walnut walrus yogurt zebra""".split()

FIRST_NAMES = """Agnes Albert Alma Ambrose Beatrice Benedict Bridget Cecily Clement Constance Cyril Daphne Desmond Dorothy
Edgar Edith Edmund Eleanor Ernest Esther Felix Flora Frances Frederick George Gilbert Grace Harold Harriet Helena Henry
Hilda Hugh Irene Isaac Jasper Josephine Julian Laurence Leonard Louisa Mabel Margaret Martin Matilda Miriam Nathaniel
Nora Oliver Oswald Percy Philippa Ralph Reginald Roland Rosalind Rupert Sebastian Silas Stella Sylvia Theodore Thomas
Ursula Victor Walter Wilfred Winifred""".split()

SURNAMES = """Abbott Archer Ashby Barlow Beckett Bellamy Birch Blackwood Bramley Brewster Carver Chandler Clarke Cooper
Crane Dalton Draper Eastwood Fairfax Fenwick Fletcher Forester Gardner Granger Hale Harper Hartley Hayward Holloway
Hooper Ingram Kirby Lambert Langley Larkin Mercer Millward Norris Oakley Osborne Parkin Pemberton Quince Radcliffe
Sawyer Selby Sexton Shepherd Skinner Spencer Stanton Tanner Thatcher Turner Underhill Vickers Wainwright Webster Weaver
Whitlock Winter Woodward Yardley""".split()

TRADES = """baker barber bookseller brewer bricklayer builder butcher carpenter clerk clockmaker cobbler cook dairyman
doctor engraver farmer fisherman forester gardener glazier grocer hatter joiner lawyer librarian locksmith mason miller
musician nurse painter pharmacist photographer plumber porter potter printer roofer sailor schoolteacher sculptor
seamstress shepherd stationmaster surveyor tailor translator watchman weaver""".split()

PLACES = """the almshouse|the assembly room|the bakery|the bank|the barn|the boathouse|the bridge|the brewery|the canal|the
chapel|the church hall|the common|the corn exchange|the cottage|the council office|the courtyard|the crossroads|the
customs house|the dairy|the empty theatre|the ferry landing|the fire station|the footpath|the foundry|the garden|the
gatehouse|the granary|the greenhouse|the harbour|the hill above the town|the hospital|the hotel|the infirmary|the inn|the
kitchen|the library|the lighthouse|the lower field|the mill|the museum|the north road|the observatory|the old wall|the
orchard|the park|the post office|the printing house|the quarry|the railway station|the reading room|the reservoir|the
riverbank|the school|the square|the stables|the tannery|the town hall|the upper meadow|the vicarage|the wharf|the
workshop""".replace("\n", " ").split("|")

THINGS = """account book|almanac|ancient map|axe|barometer|basket of apples|bicycle|bolt of cloth|bottle of ink|box of nails|
brass bell|broken chair|bunch of keys|camera|chess set|clay jar|coat|coil of rope|compass|copper pan|crate of oranges|
diary|drawing|dictionary|envelope|fishing net|folding table|fur hat|globe|grandfather clock|handcart|harness|ladder|lantern|
leather bag|loaf of bread|manuscript|medal|microscope|mirror|newspaper|notebook|oil painting|old coin|packet of seeds|
parcel|photograph|pocket watch|portrait|pot of paint|recipe|ring|roll of wallpaper|sack of flour|saw|scarf|sealed letter|
set of scales|sewing machine|shovel|sketchbook|spare wheel|spyglass|stamp album|stone bowl|suitcase|telescope|tin box|
torn contract|umbrella|vase|violin|walking stick|wedding dress|wheelbarrow|wooden spoon""".replace("\n", "").split("|")

ADJECTIVES = """battered beautiful borrowed cheap clean cracked crooked damaged dented enormous expensive faded familiar
fine foreign forgotten fragile half-finished handsome heavy homemade light little missing narrow neglected new old ordinary
painted plain polished precious rare repaired round rusty shabby sharp simple small spare square stained stolen strange
unfinished unusual useful valuable wooden worn""".split()

VERBS = """admired|bought|borrowed|carried home|cleaned|collected|copied|described|discovered|displayed|dropped|examined|
exchanged|forgot|found|hid|inherited|inspected|kept|labelled|lent out|looked after|lost|measured|mended|moved|noticed|
offered to sell|packed|paid for|polished|put away|recognised|repaired|replaced|returned|saved|searched for|sold|studied|
talked about|took apart|unpacked|valued|weighed|wrapped""".replace("\n", "").split("|")

WEATHER = """the rain had stopped|the wind was rising|a thick fog lay over the river|the first snow was falling|the sun had
just set|the afternoon was unusually warm|the roads were covered with ice|a storm was moving in from the sea|the moon was
nearly full|the air smelled of smoke|the sky was perfectly clear|the streets were almost empty|the leaves were beginning to
turn|the tide was going out|the heat made everybody slow|a cold drizzle fell all day""".replace("\n", " ").split("|")

TIMES = """after breakfast|after the harvest|at dawn|at dusk|at noon|before supper|during the holidays|early in the
spring|every other evening|in the middle of the night|in the early autumn|late in the winter|later that week|on a quiet
afternoon|on market day|on the following morning|on the last day of the month|one evening|some weeks afterwards|the day
before|towards the end of the summer|while the others slept""".replace("\n", " ").split("|")

REASONS = """because nobody else would|because the price had fallen|because the roof was leaking|for the sake of the
children|in order to pay an old debt|in spite of the doctor's advice|in the hope of a reward|out of plain
curiosity|since there was nothing better to do|to please an elderly aunt|to settle an argument|to the surprise of the whole
street|with the help of two neighbours|without telling anybody|without the least hesitation|with great care""".replace(
    "\n", " "
).split("|")

OPINIONS = """a bargain|a complete waste of time|a great improvement|a matter of luck|a mistake|an act of kindness|an honest
piece of work|far too expensive|long overdue|none of their business|not worth the trouble|perfectly reasonable|rather
amusing|the beginning of a friendship|the best news of the year|typical of the place""".replace("\n", " ").split("|")

ADVERBS = """carefully cheerfully eagerly finally gladly hastily immediately patiently promptly proudly quietly
reluctantly secretly slowly solemnly unexpectedly""".split()
